"""Takes the dashboard's pictures in docs/images: a real server whose policy divides four workers, under load.

    .venv/bin/python benchmarks/dashboard_pictures.py [--seconds 40]

Needs Chromium with its driver. The figures in the pictures are of four workers on the cores that this machine has.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from contenders import ROOT, gguf
from selenium import webdriver
from served import Served

IMAGES = ROOT / "docs" / "images"
SERVE = ["-m", "mortice", "serve", "--model", str(gguf()), "--served-name", "smollm2", "--port", "{port}"]
SERVE += ["--prefill", "2", "--decode", "2", "--threads", "1", "--policy", "dopd", "--log-level", "warning"]
SERVE += ["--slo-ttft-ms", "2000", "--slo-tpot-ms", "150", "--control-period-s", "2"]


def browser(scheme: str) -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    resize(driver, 900)
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    return driver


def resize(driver: webdriver.Chrome, height: int) -> None:
    size = {"width": 1280, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=40.0, help="of load before the pictures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with Served([sys.executable, *SERVE], model="smollm2", log=log) as served:
            drivers = {scheme: browser(scheme) for scheme in ("light", "dark")}
            for driver in drivers.values():
                driver.get(served.url)
            load = [sys.executable, "-m", "mortice", "bench", "--base-url", f"{served.url}/v1"]
            load += ["--model", "smollm2", "--num-prompts", "2000", "--concurrency", "10"]
            load += ["--input-len", "300", "--output-len", "60"]
            with subprocess.Popen(load, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as bench:
                time.sleep(options.seconds)
                for scheme, driver in drivers.items():
                    resize(driver, driver.execute_script("return document.documentElement.scrollHeight"))
                    time.sleep(1)
                    driver.save_screenshot(str(IMAGES / f"dashboard-{scheme}.png"))
                    driver.quit()
                bench.terminate()


if __name__ == "__main__":
    main()
