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
  return `${text} ${total} ${vectors.length}`
}

export function hintOf(error: unknown): string | number | null {
  if (error instanceof declared.RateLimited) return error.retryAfterMs
  return error instanceof declared.AimeshError ? error.hint : null
}
