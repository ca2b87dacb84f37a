// Named checks of one client, as checklist.py has them for Python: each sends one field, reads one event or uses one helper.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'

const checks = new Map()
const missing = []

/** Add a check of what is named, or of several names at once. */
export function check(names, run) {
  for (const name of [names].flat()) {
    if (checks.has(name)) throw new Error(`two checks of ${name}`)
    checks.set(name, run)
  }
}

/** Fail at the end if a field of the client's own types has no check. */
export function ensureNamed(api, fields) {
  missing.push(...fields.map((field) => `${api}.${field}`).filter((name) => !checks.has(name)))
}

/** Run all checks, whatever fails. `refused`: feature -> [why we refuse it, the checks that say so]. The last line is JSON with their number. */
export async function run(refused) {
  missing.push(...Object.values(refused).flatMap(([, names]) => names.filter((name) => !checks.has(name))))
  const failed = []
  for (const [name, test] of checks) {
    try {
      await test()
    } catch (error) {
      console.log(`${name}: ${error.stack}`)
      failed.push(name)
    }
  }
  for (const name of missing) console.log(`no check of ${name}`)
  if (failed.length) console.log(`failed: ${failed.join(', ')}`)
  const reasons = Object.fromEntries(Object.entries(refused).map(([feature, [reason]]) => [feature, reason]))
  console.log(JSON.stringify({ checks: checks.size, refused: reasons }))
  process.exit(failed.length || missing.length ? 1 : 0)
}

/** Return the error that a promise ends with. */
export const errorOf = (promise) =>
  promise.then(
    () => assert.fail('it was not refused'),
    (error) => error,
  )

/** Return a prompt for the scripted model. */
export const script = (turn) => JSON.stringify(turn)

/** Return the fields of an interface or schema in a package's declarations, so that a later version's new field needs a check. */
export const fieldsOf = (file, name) => membersOf(file, name).map(([field]) => field)

/** Return the values of `type` of the interfaces in a union. */
export function tagsOf(file, union) {
  const members = new RegExp(`\\nexport type ${union} = ([^;]+);`).exec(declarations(file))[1].split(' | ')
  const types = members.map((member) => membersOf(file, member.split('.').at(-1)).find(([field]) => field === 'type')[1])
  return new Set(types.flatMap((type) => [...type.matchAll(/'([^']+)'/g)].map((match) => match[1])))
}

const declarations = (file) => readFileSync(`node_modules/${file}`, 'utf8')

/** Return the names and types of the fields. */
function membersOf(file, name) {
  const interfaces = new RegExp(`\\n( *)(?:export )?(?:declare )?(?:interface|const) ${name}\\b[^{]*\\{\\n([\\s\\S]*?)\\n\\1\\}`)
  const [, , body] = interfaces.exec(declarations(file))
  const indents = [...body.matchAll(/^( +)'?[\w.]+'?\??:/gm)].map((match) => match[1])
  const least = Math.min(...indents.map((indent) => indent.length))
  return [...body.matchAll(new RegExp(`^ {${least}}'?([\\w.]+)'?\\??: ([^;]*)`, 'gm'))].map(([, field, type]) => [field, type])
}
