"""The page in a real browser."""

import json
import time
import urllib.request
from threading import Thread

import msgspec
import pytest

from mortice.cluster.api import Division, Turn, WorkerInfo
from mortice.serve.options import ServeOptions
from mortice.testing import FakeCluster


class Colocated(FakeCluster):
    """Decode workers alone; the first of them may be told to die."""

    life, state_of_first = 1, "running"

    def workers(self) -> list[WorkerInfo]:
        stats = super().workers()[1].stats
        return [
            WorkerInfo(
                id=f"decode-0.{self.life}", role="decode", pid=7, state=self.state_of_first, stats=stats
            ),
            WorkerInfo(id="decode-1.1", role="decode", pid=8, state="running", stats=stats),
        ]


def wait(condition, what="condition"):
    """Poll until `condition` holds; the page is another process, so there is nothing to await."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.05)


def text(driver, selector):
    return driver.execute_script("return document.querySelector(arguments[0])?.textContent ?? ''", selector)


def number_of(driver, selector):
    return driver.execute_script("return document.querySelectorAll(arguments[0]).length", selector)


def load(driver, server):
    driver.get(server.url)
    wait(lambda: not driver.execute_script("return document.body.classList.contains('stale')"), "an overview")


def say(driver, words):
    box = driver.find_element("id", "prompt")
    box.send_keys(words)
    driver.find_element("id", "send").click()


def ask(server, max_tokens=16):
    body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": max_tokens}).encode()
    request = urllib.request.Request(
        server.url + "v1/chat/completions", body, {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def test_loads_shows_both_workers_and_complains_of_nothing(serve, open_browser):
    with serve() as server, open_browser() as driver:
        load(driver, server)
        assert text(driver, "#lane-prefill .worker .name b") == "prefill-0"
        assert text(driver, "#lane-decode .worker .name b") == "decode-0"
        assert text(driver, "#model") == "fake"
        assert "1 prefill + 1 decode" in text(driver, "#shape")
        assert server.url + "v1/chat/completions" in text(driver, "#curl")
        assert driver.find_element("id", "empty").is_displayed()
        assert driver.get_log("browser") == []
        resources = driver.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
        assert resources
        assert all(name.startswith(server.url) for name in resources)


def test_chat_streams_an_answer_as_text(serve, open_browser):
    hostile = "<img src=x onerror=document.title='owned'><b>bold</b>"
    with (
        serve(script=lambda request, index: list(hostile.encode()), pace_s=0.005) as server,
        open_browser() as driver,
    ):
        load(driver, server)
        title = driver.title
        say(driver, "Hi <i>there</i>")
        wait(lambda: "TTFT" in text(driver, ".took"), "the end of the answer")
        assert text(driver, ".said.user") == "Hi <i>there</i>"
        assert text(driver, ".said.reply .text") == hostile
        assert "TPOT" in text(driver, ".took")
        assert f"{len(hostile) + 1} tokens" in text(driver, ".took")
        assert number_of(driver, ".log img, .log b, .log i") == 0
        assert driver.title == title
        wait(lambda: text(driver, "#finished") == "1", "the count of finished requests")
        assert not driver.find_element("id", "empty").is_displayed()
        assert driver.get_log("browser") == []


def test_stop_frees_the_request(serve, open_browser):
    with serve(script=lambda request, index: [65] * 5000, pace_s=0.02) as server, open_browser() as driver:
        load(driver, server)
        driver.find_element("id", "max-tokens").clear()
        driver.find_element("id", "max-tokens").send_keys("2000")
        say(driver, "Go on")
        wait(lambda: "AAA" in text(driver, ".said.reply .text"), "some text")
        driver.find_element("id", "stop").click()
        wait(lambda: server.cluster.cancelled, "the abort")
        wait(lambda: "stopped" in text(driver, ".took"), "the note")
        assert server.cluster.num_in_flight() == 0
        assert driver.find_element("id", "send").is_enabled()
        assert not driver.find_element("id", "stop").is_displayed()
        wait(lambda: number_of(driver, ".mark") == 0, "its mark to leave")
        assert "1 failed" in text(driver, "#failed")


def test_escape_stops_and_enter_sends(serve, open_browser):
    with serve(script=lambda request, index: [65] * 5000, pace_s=0.02) as server, open_browser() as driver:
        load(driver, server)
        driver.find_element("id", "prompt").send_keys("Hi\n")
        wait(lambda: "AAA" in text(driver, ".said.reply .text"), "some text")
        driver.find_element("id", "prompt").send_keys("\ue00c")
        wait(lambda: server.cluster.cancelled, "the abort")
        assert "stopped" in text(driver, ".took") or not server.cluster.num_in_flight()


def test_an_error_is_shown(serve, open_browser):
    with serve() as server, open_browser() as driver:
        load(driver, server)
        server.on_loop(server.cluster._apply, "sleep", {})
        say(driver, "Hello?")
        wait(lambda: "asleep" in text(driver, ".said .wrong"), "the error")


def test_numbers_and_marks_follow_the_load(serve, open_browser):
    script = lambda request, index: [65] * 400  # noqa: E731
    with serve(script=script, pace_s=0.02, first_token_s=0.2) as server, open_browser() as driver:
        load(driver, server)
        assert text(driver, "#inflight") == "0"
        threads = [Thread(target=ask, args=(server, 150)) for _ in range(20)]
        for thread in threads:
            thread.start()
        wait(lambda: text(driver, "#inflight") == "20", "20 in flight")
        wait(lambda: number_of(driver, ".mark.decode") == 20, "20 marks at decode")
        wait(lambda: float(text(driver, "#rate").replace(",", "")) > 0, "tokens")
        driver.refresh()  # a page that comes late finds them all the same
        wait(lambda: number_of(driver, ".mark") == 20, "20 marks again")
        for thread in threads:
            thread.join()
        wait(lambda: text(driver, "#finished") == "20", "20 finished")
        wait(lambda: number_of(driver, ".mark") == 0, "no mark left")
        assert "of 20 in time" in text(driver, "#ttft .met")
        assert number_of(driver, "#tpot .curve") == 1
        assert driver.get_log("browser") == []


def test_targets_are_kept(serve, open_browser):
    with serve(first_token_s=0.05) as server, open_browser() as driver:
        ask(server)
        load(driver, server)
        wait(lambda: "of 1 in time" in text(driver, "#ttft .met"), "the latency")
        assert text(driver, "#both") == "100"
        field = driver.find_element("id", "ttft-slo")
        wait(lambda: field.get_attribute("value") == "2000", "the target that the server works for")
        field.clear()
        field.send_keys("1")
        wait(lambda: text(driver, "#both") == "0", "a target that is missed")
        assert text(driver, "#ttft .met b") == "0 %"
        driver.refresh()
        wait(lambda: text(driver, "#both") == "0", "the target after a reload")
        assert driver.find_element("id", "ttft-slo").get_attribute("value") == "1"


def test_colocated_has_no_prefill_lane_and_a_death_shows(serve, open_browser):
    with serve(cluster=Colocated) as server, open_browser() as driver:
        load(driver, server)
        assert not driver.find_element("id", "lane-prefill").is_displayed()
        assert "2 colocated" in text(driver, "#shape")
        server.cluster.state_of_first = "starting"
        server.on_loop(server.cluster.happen, "worker", worker_id="decode-0.1", detail="ended with code -9")
        first = "#lane-decode .worker:nth-of-type(1)"
        wait(lambda: number_of(driver, f'{first}.died:not([data-state="running"])') == 1, "the death")
        server.cluster.life, server.cluster.state_of_first = 2, "running"
        wait(lambda: number_of(driver, f'{first}.born[data-state="running"]') == 1, "the return")
        assert text(driver, f"{first} .name span") == "life 2"


class Divided(FakeCluster):
    """Three workers under a policy that has decided twice."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.worn = {"worker-0.1": "prefill", "worker-1.1": "decode", "worker-2.1": "decode"}
        self.turns = [
            self.turn(10.0),
            self.turn(20.0, actions=["worker-2.1 becomes prefill"], reason="drift"),
        ]

    def turn(self, t_s, **fields):
        given = {"rate": 2.0, "expected_rate": 3.5, "prompt_mean": 90.0, "output_mean": 20.0, "met": 1.0}
        given |= {"now": Division(1, 2), "wanted": Division(2, 1), "other": Division(0, 0, 3)}
        return Turn(t_s=t_s, **(given | {"actions": [], "reason": "<b>calm</b>", "distrusted": []} | fields))

    def roles(self):
        return msgspec.structs.replace(super().roles(), policy="mortice")


def test_roles_follow_flips_and_decisions_say_why(serve, open_browser):
    with serve(cluster=Divided) as server, open_browser() as driver:
        load(driver, server)
        assert text(driver, "#ratio") == "1P : 2D"
        assert "mortice" in text(driver, "#policy")
        assert text(driver, "#moving") == "wanted 2P : 1D"
        first = "#decisions li:first-child"
        assert text(driver, f"{first} b") == "worker-2.1 becomes prefill"
        assert text(driver, f"{first} .why") == "drift"
        assert text(driver, f"{first} .other") == "next best 3 undivided"
        assert text(driver, "#decisions li:last-child .why") == "<b>calm</b>"
        assert number_of(driver, "#load .rate") == number_of(driver, "#load .expected") == 1
        assert number_of(driver, "#load .changed") == 1
        server.on_loop(server.cluster.wear, "worker-2.1", "prefill")
        wait(
            lambda: number_of(driver, "#lane-prefill .worker.worn.prefill") == 1, "the box in the other lane"
        )
        wait(lambda: text(driver, "#ratio") == "2P : 1D", "the new division")
        assert number_of(driver, "#lane-decode .worker") == 1
        server.on_loop(server.cluster.wear, "worker-0.1", "mixed")
        wait(lambda: text(driver, "#ratio") == "1P : 1D + 1 undivided", "the undivided one")
        assert number_of(driver, "#lane-decode .worker.mixed") == 1
        assert driver.get_log("browser") == []


def test_a_token_opens_the_feed_and_stays_in_the_tab(serve, open_browser):
    with serve(options=ServeOptions(admin_token="open", api_keys=("k",))) as server, open_browser() as driver:
        driver.get(server.url)
        wait(lambda: driver.find_element("id", "locked").is_displayed(), "the lock")
        driver.find_element("id", "locked-key").send_keys("open\n")
        wait(lambda: text(driver, "#model") == "fake", "an overview")
        assert not driver.find_element("id", "locked").is_displayed()
        say(driver, "Hi")
        wait(lambda: "TTFT" in text(driver, ".took"), "an answer")
        assert driver.execute_script("return sessionStorage.getItem('mortice.key')") == "open"
        assert "open" not in driver.execute_script("return JSON.stringify(localStorage)")


@pytest.mark.parametrize("width", [380, 760, 1280, 1600])
def test_no_sideways_scrolling(serve, open_browser, width):
    with serve() as server, open_browser(width, 800) as driver:
        load(driver, server)
        say(driver, "wide" * 60)
        wait(lambda: "TTFT" in text(driver, ".took"), "an answer")
        assert driver.execute_script("return document.documentElement.scrollWidth") == width


def test_light_dark_and_calm(serve, open_browser):
    ground = "return getComputedStyle(document.body).backgroundColor"
    with serve(script=lambda request, index: [65] * 40, pace_s=0.05) as server:
        with open_browser() as driver:
            load(driver, server)
            light = driver.execute_script(ground)
        with open_browser(dark=True, calm=True) as driver:
            load(driver, server)
            assert driver.execute_script(ground) != light
            say(driver, "Hi")
            wait(lambda: number_of(driver, ".mark.decode") == 1, "a mark")
            assert number_of(driver, ".block") == 0  # nothing travels
            wait(lambda: number_of(driver, ".mark") == 0, "its end")
