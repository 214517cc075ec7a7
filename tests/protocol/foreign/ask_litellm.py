"""litellm against BASE_URL (argument 1): prints what came back as one JSON object."""

import json
import sys

import litellm

litellm.suppress_debug_info = True  # it would print advice into our JSON

given = {
    "model": "openai/smollm2",
    "api_base": sys.argv[1],
    "api_key": "none",
    "messages": [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}],
    "max_tokens": 24,
    "temperature": 0,
}
whole = litellm.completion(**given)
chunks = list(litellm.completion(**given, stream=True, stream_options={"include_usage": True}))
rebuilt = litellm.stream_chunk_builder(chunks)
try:
    litellm.completion(**given | {"temperature": 9})
    refusal = None
except litellm.exceptions.BadRequestError as error:
    refusal = str(error)
text = litellm.text_completion(
    model="text-completion-openai/smollm2",
    api_base=sys.argv[1],
    api_key="none",
    prompt="The capital of France is",
    max_tokens=4,
    temperature=0,
)
print(
    json.dumps(
        {
            "whole": whole.choices[0].message.content,
            "streamed": rebuilt.choices[0].message.content,
            "usage": [whole.usage.completion_tokens, rebuilt.usage.completion_tokens],
            "completion": text.choices[0].text,
            "refusal": refusal,
        }
    )
)
