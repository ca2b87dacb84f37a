// All checks of OpenAI's client for Node, for the APIs that we serve.
import { run } from '../../checklist.js'
import './chat.js'
import './jobs.js'
import './responses.js'
import './others.js'

await run({
  'audio and files': [
    'models only read text and images, and only write text',
    ['chat.audio', 'chat.modalities', 'chat.messages input_audio', 'chat.messages file', 'responses.input.message input_file'],
  ],
  'what only OpenAI stores or can read': [
    "prompts are only stored where the mesh's policy says so; send the whole conversation",
    [
      ...['responses.previous_response_id', 'responses.conversation', 'responses.prompt', 'responses.compact()'],
      ...['responses.input.compaction', 'responses.input.compaction_trigger'],
    ],
  ],
  'moderation of a request': ['policies decide what is checked', ['chat.moderation', 'responses.moderation']],
})
