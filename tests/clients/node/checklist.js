// Named checks of one client, as checklist.py has them for Python: each sends one field, reads one event or uses one helper.
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

/** Return a prompt for the scripted model. */
export const script = (turn) => JSON.stringify(turn)

/** Return the fields of an interface in a package's declarations, so that a later version's new field needs a check. */
export function fieldsOf(file, name) {
  const text = readFileSync(`node_modules/${file}`, 'utf8')
  const body = new RegExp(`\\n( *)(?:export )?(?:declare )?interface ${name}\\b[^{]*\\{\\n([\\s\\S]*?)\\n\\1\\}`).exec(text)
  return [...body[2].matchAll(new RegExp(`^${body[1]} {4}(\\w+)\\??:`, 'gm'))].map((match) => match[1])
}
