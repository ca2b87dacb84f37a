// All checks of the AI SDK with its three providers.
import { run } from '../../checklist.js'
import './chats.js'
import './responses.js'
import './messages.js'

globalThis.AI_SDK_LOG_WARNINGS = false
await run({
  'audio, files and images by URL': [
    'models only read text and images, and the gateway fetches nothing',
    [
      ...['compatible file part', 'compatible audio part', 'openai file part', 'anthropic file part', 'anthropic image URL'],
      'responses.passThroughUnsupportedFiles',
    ],
  ],
  'stored conversations': [
    'prompts are never stored; send the whole conversation',
    ['responses.previousResponseId', 'responses.conversation'],
  ],
})
