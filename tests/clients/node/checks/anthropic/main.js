// All checks of Anthropic's client for Node.
import { run } from '../../checklist.js'
import './answers.js'
import './beta.js'
import './content.js'
import './fields.js'

await run({
  source: [
    'the gateway fetches no URLs and keeps no files, and models read no PDF; send the text or the image itself',
    ['block source[url]', 'block source[file]', 'block source[base64]: PDF'],
  ],
  thread: ['prompts are not stored; send the whole conversation', ['beta.thread', 'beta.messages.thread()']],
  compaction: [
    'nothing is summarized here, and only Anthropic can read its summaries; shorten the conversation yourself',
    ['beta.compaction', 'beta block.compaction', 'toolRunner().compactBeforeNextTurn()'],
  ],
})
