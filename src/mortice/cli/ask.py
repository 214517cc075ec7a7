"""One question to a server that just came up: the end of `make run`."""

import time

import httpx
import msgspec


async def ask(url: str, question: str) -> None:
    """Print the streamed answer with its TTFT and TPOT, as the client saw them."""
    body = {
        "model": "",
        "messages": [{"role": "user", "content": question}],
        "max_completion_tokens": 80,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        body["model"] = (await client.get("/v1/models")).json()["data"][0]["id"]
        print(f"\nyou: {question}\n{body['model']}: ", end="", flush=True)
        began = time.perf_counter()
        first = last = 0.0
        num_tokens = 0
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = msgspec.json.decode(line[6:])
                if "error" in chunk:
                    print(f"error: {chunk['error']['message']}")
                    return
                text = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
                if text:
                    last = time.perf_counter()
                    first = first or last
                    print(text, end="", flush=True)
                if chunk.get("usage"):
                    num_tokens = chunk["usage"]["completion_tokens"]
    tpot_ms = (last - first) / (num_tokens - 1) * 1e3 if num_tokens > 1 else 0.0
    print(f"\n\nTTFT {(first - began) * 1e3:.0f} ms, TPOT {tpot_ms:.1f} ms, {num_tokens} tokens")
    print(f"dashboard: {url}/   OpenAI API: {url}/v1   Ctrl-C ends the server", flush=True)
