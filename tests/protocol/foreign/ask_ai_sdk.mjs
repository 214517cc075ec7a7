// The AI SDK over its OpenAI-compatible provider against BASE_URL (argument 1): prints what came back as one
// JSON object.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, streamText, tool } from "ai";
import { z } from "zod";

const provider = createOpenAICompatible({
  name: "mortice", baseURL: process.argv[2], apiKey: "none", supportsStructuredOutputs: true, includeUsage: true,
});
const model = provider("smollm2");
const given = {
  model, prompt: "What is the capital of France? Answer in one sentence.", temperature: 0, maxOutputTokens: 24,
  maxRetries: 0,
};
const found = {};

const whole = await generateText(given);
found.whole = whole.text;
const stream = streamText(given);
found.streamed = "";
for await (const piece of stream.textStream) found.streamed += piece;
found.tokens = [whole.usage.outputTokens, (await stream.usage).outputTokens];
found.person = (
  await generateObject({
    ...given,
    prompt: "Invent a person.",
    maxOutputTokens: 80,
    schema: z.strictObject({ name: z.string().max(20), age: z.number().int().min(0).max(120) }),
  })
).object;
const called = await generateText({
  ...given,
  prompt: "How is the weather in Oslo?",
  maxOutputTokens: 80,
  tools: { weather: tool({ inputSchema: z.strictObject({ city: z.string().max(20) }) }) },
  toolChoice: "required",
});
found.calls = called.toolCalls.map((call) => ({ name: call.toolName, args: call.input }));
console.log(JSON.stringify(found));
