"""llama.cpp's own HTTP server, out of the xllamacpp package and run by that package's interpreter."""

import argparse
import signal

from xllamacpp import CommonParams, Server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="GGUF file")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True, help="sequences at once")
    parser.add_argument("--context", type=int, required=True, help="tokens of all slots together")
    options = parser.parse_args()

    params = CommonParams()
    params.model.path = options.model
    params.model_alias = {"smollm2"}
    params.hostnames = ["127.0.0.1"]
    params.port = options.port
    params.n_parallel = options.slots
    params.n_ctx = options.context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    server = Server(params)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    del server


if __name__ == "__main__":
    # blocked in every thread, the server's too, so that sigwait is the one to see them
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main()
