// Read by tsc and run by nobody: what index.d.ts declares is what the code has, and what programs write is taken or refused.

import * as declared from 'aimesh-client'
import type * as made from '../src/index.js'

type Instances<Classes> = { [Name in keyof Classes]: Classes[Name] extends { prototype: infer Each } ? Each : never }
type Same<A, B> = [A] extends [B] ? ([B] extends [A] ? true : false) : false

// Both have the same names, and each made thing can stand where the declared one is expected.
export const names: Same<keyof typeof made, keyof typeof declared> = true
export const instances = (each: Instances<typeof made>): Instances<typeof declared> => each
// Public members are the same ones: none is made and not declared.
type Members<Classes> = { [Name in keyof Classes]: keyof Instances<Classes>[Name] }
export const members: Same<Members<typeof made>, Members<typeof declared>> = true

export async function program(client: declared.AIInferenceClient): Promise<string> {
  const { text, usage }: declared.Answer = await client.inference({ prompt: 'hi', model: 'llama3', maxTokens: 500 })
  const stream = client.stream({ messages: [{ role: 'user', content: 'hi' }], signal: AbortSignal.timeout(1000) })
  for await (const piece of stream) piece.toUpperCase()
  const total: number = usage.totalTokens + (stream.answer?.usage.totalTokens ?? 0)
  const vectors: number[][] = (await client.embed({ input: ['a', 'b'] })).vectors
  const messages: declared.Message[] = [{ role: 'user', content: 'hi' }]
  const tools: declared.Tool[] = [{ type: 'function', function: { name: 'f', parameters: { type: 'object' } } }]
  const called = await client.inference({ messages, tools, toolChoice: 'required', logprobs: true, topLogprobs: 2 })
  messages.push(called.message, ...called.toolCalls.map(({ id }) => ({ role: 'tool' as const, tool_call_id: id, content: '5' })))
  const thought: string = called.reasoning + stream.reasoning
  for await (const { text: said, reasoning } of client.stream({ prompt: 'hi', reasoningEffort: 'low' }).pieces())
    reasoning.concat(said, thought)
  // @ts-expect-error there is no such effort
  await client.inference({ prompt: 'hi', reasoningEffort: 'max' })
  const likeliest: number | undefined = called.logprobs[0]?.top[0]?.logprob
  const { credits, budget } = await client.quota()
  const left: string | undefined = budget?.available ?? credits?.available
  // @ts-expect-error a schema is needed
  await client.inference({ prompt: 'hi', responseFormat: { type: 'json_schema' } })
  // @ts-expect-error the result of a call names the call
  messages.push({ role: 'tool', content: '5' })
  // @ts-expect-error it is maxTokens
  await client.inference({ prompt: 'hi', max_tokens: 5 })
  // @ts-expect-error a key is needed
  new declared.AIInferenceClient({ baseUrl: 'http://127.0.0.1' })
  const session: declared.Session = await declared.login({ baseUrl: 'http://127.0.0.1', username: 'ann', password: 'pw' })
  new declared.AIInferenceClient({ session, baseUrl: 'http://127.0.0.1' }).session?.sessionToken.toUpperCase()
  // @ts-expect-error a key or a session
  new declared.AIInferenceClient({ apiKey: 'k', session, baseUrl: 'http://127.0.0.1' })
  // @ts-expect-error a stream is had of the client
  new declared.AnswerStream()
  return `${text} ${total} ${vectors.length} ${likeliest} ${left}`
}

export function hintOf(error: unknown): string | number | null {
  if (error instanceof declared.RateLimited) return error.retryAfterMs
  return error instanceof declared.AimeshError ? error.hint : null
}
