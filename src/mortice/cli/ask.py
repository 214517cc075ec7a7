"""One question to a server that just came up: the end of `make run`."""

from mortice.bench.chat import Conversation
from mortice.bench.endpoint import Endpoint


async def ask(url: str, question: str, api_key: str | None) -> None:
    """Print the streamed answer with its TTFT and TPOT, as the client saw them."""
    endpoint = Endpoint(f"{url}/v1", "", api="chat", api_key=api_key, timeout_s=120)
    talk = Conversation(endpoint, max_tokens=80, temperature=0)
    name = await talk.begin()
    print(f"\nyou: {question}\n{name}: ", end="", flush=True)
    answer = await talk.ask(question, lambda piece: print(piece, end="", flush=True))
    endpoint.close()
    if not answer.ok:
        print(f"\nno answer: {answer.failure}: {answer.detail}")
        return
    tpot = f"TPOT {answer.tpot_s * 1e3:.1f} ms, " if answer.tpot_s else ""
    print(f"\n\nTTFT {answer.ttft_s * 1e3:.0f} ms, {tpot}{answer.num_tokens} tokens")
    print(f"dashboard: {url}/   OpenAI API: {url}/v1   Ctrl-C ends the server", flush=True)
