// The OpenAI client for Node against BASE_URL (argument 1): prints what came back as one JSON object.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "What is the capital of France? Answer in one sentence." }];
const given = { model: "smollm2", messages, max_tokens: 24, temperature: 0 };
const found = {};

const whole = await client.chat.completions.create(given);
found.whole = whole.choices[0].message.content;

found.iterated = "";
for await (const chunk of await client.chat.completions.create({ ...given, stream: true })) {
  found.iterated += chunk.choices[0]?.delta?.content ?? "";
}

const helper = client.chat.completions.stream({ ...given, stream_options: { include_usage: true } });
found.heard = "";
helper.on("content", (piece) => (found.heard += piece));
const final = await helper.finalChatCompletion();
found.helped = final.choices[0].message.content;
found.tokens = [whole.usage.completion_tokens, final.usage.completion_tokens];

const parameters = {
  type: "object",
  properties: { city: { type: "string", maxLength: 20 } },
  required: ["city"],
  additionalProperties: false,
};
const forced = client.chat.completions.stream({
  ...given,
  max_tokens: 60,
  tools: [{ type: "function", function: { name: "weather", strict: true, parameters } }],
  tool_choice: { type: "function", function: { name: "weather" } },
  parallel_tool_calls: false,
});
const call = (await forced.finalChatCompletion()).choices[0].message.tool_calls[0];
found.call = { name: call.function.name, args: JSON.parse(call.function.arguments) };

const response = client.responses.stream({
  model: "smollm2", input: messages[0].content, max_output_tokens: 24, temperature: 0,
});
found.response = (await response.finalResponse()).output_text;

const controller = new AbortController();
found.aborted = 0;
try {
  const stream = await client.chat.completions.create(
    { ...given, max_tokens: 1500, ignore_eos: true, stream: true },
    { signal: controller.signal },
  );
  for await (const chunk of stream) {
    if (chunk.choices.length > 0 && ++found.aborted === 4) controller.abort();
  }
} catch (error) {
  found.abortError = error.constructor.name;
}

try {
  await client.chat.completions.create({ ...given, temperature: 9 });
} catch (error) {
  found.refusal = { name: error.constructor.name, status: error.status, param: error.param };
}
console.log(JSON.stringify(found));
