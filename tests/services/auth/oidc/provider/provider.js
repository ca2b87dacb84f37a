// A real OpenID Connect provider on loopback: `oidc-provider` with people, passwords and groups from one JSON argument.
// Prints its issuer on one line, and exits when its standard input closes.
import { createServer } from 'node:http'
import { createServer as createTlsServer } from 'node:https'
import Provider from 'oidc-provider'

const { port = 0, tls, people, clients, keys, algorithms } = JSON.parse(process.argv[2])

function personOf(id) {
  const person = people[id]
  if (!person) return undefined
  const { password, ...claims } = person
  return { accountId: id, claims: () => ({ sub: id, ...claims }) }
}

function settings() {
  return {
    clients,
    jwks: { keys },
    findAccount: (_, id) => personOf(id),
    claims: { openid: ['sub', 'amr'], profile: ['preferred_username', 'name'], email: ['email', 'email_verified'], groups: ['groups'] },
    scopes: ['openid', 'profile', 'email', 'groups'],
    cookies: { keys: ['only for tests'] },
    pkce: { required: () => true },
    enabledJWA: { idTokenSigningAlgValues: algorithms },
    features: { devInteractions: { enabled: false }, rpInitiatedLogout: { enabled: true } },
    interactions: { url: (_, interaction) => `/interaction/${interaction.uid}` },
    ttl: { AccessToken: 600, AuthorizationCode: 60, Grant: 3600, IdToken: 600, Interaction: 600, Session: 3600 },
  }
}

function page(title, inputs) {
  return `<!doctype html><html lang="en"><title>${title}</title><h1>${title}</h1><form method="post">${inputs}</form></html>`
}

const pages = {
  login: page(
    'Log in at the test provider',
    '<label>Name <input name="login"></label> <label>Password <input name="password" type="password"></label> <button>Log in</button>',
  ),
  consent: page(
    'May this mesh know who you are?',
    '<button name="answer" value="allow">Allow</button> <button name="answer" value="refuse">Refuse</button>',
  ),
}

async function formOf(request) {
  let body = ''
  for await (const chunk of request) {
    body += chunk
    if (body.length > 65536) throw new Error('a form of that size was not sent by our pages')
  }
  return new URLSearchParams(body)
}

async function consented({ grantId, session, params, prompt }) {
  const { Grant } = provider
  const known = grantId && (await Grant.find(grantId))
  const grant = known || new Grant({ accountId: session.accountId, clientId: params.client_id })
  if (prompt.details.missingOIDCScope) grant.addOIDCScope(prompt.details.missingOIDCScope.join(' '))
  if (prompt.details.missingOIDCClaims) grant.addOIDCClaims(prompt.details.missingOIDCClaims)
  return { consent: { grantId: await grant.save() } }
}

async function resultOf(details, form) {
  if (details.prompt.name === 'login') {
    const person = people[form.get('login')]
    const right = person && person.password === form.get('password')
    return right ? { login: { accountId: form.get('login'), amr: ['pwd'] } } : undefined
  }
  const allowed = form.get('answer') === 'allow'
  return allowed ? consented(details) : { error: 'access_denied', error_description: 'the person refused' }
}

async function interact(request, response) {
  const details = await provider.interactionDetails(request, response)
  const result = request.method === 'POST' ? await resultOf(details, await formOf(request)) : undefined
  if (result) {
    await provider.interactionFinished(request, response, result)
    return
  }
  response.statusCode = request.method === 'POST' ? 401 : 200
  response.setHeader('Content-Type', 'text/html; charset=utf-8')
  response.end(pages[details.prompt.name])
}

const server = tls ? createTlsServer(tls) : createServer()
server.listen(port, '127.0.0.1')
await new Promise((listening) => server.once('listening', listening))
const issuer = `${tls ? 'https' : 'http'}://127.0.0.1:${server.address().port}`
const provider = new Provider(issuer, settings())
const answer = provider.callback()

server.on('request', (request, response) => {
  if (!request.url.startsWith('/interaction/')) {
    answer(request, response)
    return
  }
  interact(request, response).catch((error) => {
    response.statusCode = 400
    response.end(String(error))
  })
})

process.stdin.on('end', () => process.exit(0)).resume()
process.stdout.write(`${JSON.stringify({ issuer })}\n`)
