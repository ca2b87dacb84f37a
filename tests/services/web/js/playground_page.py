"""The markup that playground.js works on, as the template must produce it."""

MODELS = '<option value="small" data-images>small</option><option value="large">large</option>'
NUMBERS = (("temperature", "Temperature"), ("max_tokens", "Max tokens"), ("top_p", "Top p"), ("seed", "Seed"))
SAMPLES = (("curl", "curl"), ("python", "Python"), ("javascript", "JavaScript"), ("aicli", "aicli"))


def _code(name: str, label: str) -> str:
    button = '<button type="button" class="quiet" data-copy="">Copy</button>'
    code = f'<pre tabindex="0" role="region" aria-label="{label}"><code data-chat="sample-{name}"></code></pre>'
    return f'<figure class="code"><figcaption><span>{label}</span>{button}</figcaption>{code}</figure>'


def playground() -> str:
    number = 'form="chat" inputmode="decimal" pattern=" *[0-9]*[.,]?[0-9]+ *"'
    fields = "".join(f'<label>{label} <input name="{name}" {number}></label>' for name, label in NUMBERS)
    return f"""
<section class="chat" data-playground data-form-token="form-token" data-address="https://ai.example" aria-label="Chat">
  <details><summary>Settings <span data-chat="params" data-defaults="Model defaults"></span></summary>
    <label>Model <select name="model" form="chat">{MODELS}</select></label>
    <label>System <textarea name="system" form="chat"></textarea></label>{fields}
    <label>Reasoning effort <select name="reasoning_effort" form="chat"><option value="">Default</option>
      <option value="low">low</option></select></label>
  </details>
  <p class="actions">
    <button type="button" class="quiet" data-chat-act="clear">New chat</button>
    <button type="button" class="quiet" data-chat-act="code">View as code</button>
  </p>
  <div class="chat-log" data-chat="log" tabindex="0" role="region" aria-label="Messages">
    <p data-chat="empty">Message the model.</p>
    <ol class="chat-messages" data-chat="messages"></ol>
    <button type="button" class="quiet chat-latest" data-chat="latest" hidden>To the end</button>
  </div>
  <div class="unseen" data-chat="announcement" role="status"></div>
  <form id="chat" class="chat-form" data-chat="form">
    <ul class="chat-images" data-chat="images" aria-label="Images" hidden></ul>
    <p class="chat-problem" data-chat="image-problem" role="alert" hidden></p>
    <input type="file" data-chat="files" accept="image/jpeg,image/png,image/webp,image/gif" multiple hidden>
    <button type="button" class="quiet icon" data-chat-act="attach" aria-label="Add images" title="Add images" hidden><svg></svg></button>
    <label class="unseen" for="message">Message</label>
    <textarea id="message" name="message" rows="1" required placeholder="Message the model"></textarea>
    <button type="submit" data-chat="send">Send</button>
    <button type="button" class="icon" data-chat-act="stop" aria-label="Stop" title="Stop" hidden><svg></svg></button>
  </form>
  <template data-chat="image-template"><li>
    <button type="button" class="icon" data-chat-act="detach" aria-label="Remove" title="Remove"><svg></svg></button>
  </li></template>
  <template data-chat="user-template"><li class="chat-question" data-chat="text"></li></template>
  <template data-chat="answer-template"><li>
    <details class="chat-thoughts" data-chat="thoughts" hidden><summary>Thoughts</summary><div data-chat="thought"></div></details>
    <div class="markdown" data-chat="text"></div>
    <p class="chat-note" data-chat="waiting" hidden></p>
    <p class="chat-problem" data-chat="problem" role="alert" hidden></p>
    <p class="chat-note" data-chat="usage" hidden></p>
    <p class="actions">
      <button type="button" class="quiet icon" data-chat-act="copy" aria-label="Copy answer" title="Copy answer" hidden><svg></svg></button>
      <button type="button" class="quiet icon" data-chat-act="regenerate" aria-label="Regenerate" hidden><svg></svg></button>
      <button type="button" class="quiet icon" data-chat-act="up" aria-label="Good answer" aria-pressed="false"><svg></svg></button>
      <button type="button" class="quiet icon" data-chat-act="down" aria-label="Bad answer" aria-pressed="false"><svg></svg></button>
    </p>
  </li></template>
  <dialog data-chat="code" aria-label="View as code">
    {"".join(_code(*sample) for sample in SAMPLES)}
    <p class="actions"><button type="button" class="quiet" data-close>Close</button></p>
  </dialog>
</section>
"""
