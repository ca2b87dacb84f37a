'use strict'
// Copies blocks of files between peers (../protocol.md): hashes and writes what arrives, and sends what peers may read. Python decides which
// block to ask of which peer, and who may read.

const { createHash } = require('node:crypto')
const fs = require('node:fs')
const { setTimeout: sleep } = require('node:timers/promises')
const { promisify } = require('node:util')
const v8 = require('node:v8')
const vm = require('node:vm')
const { MAX_PART, MAX_UNSENT, OVERHEAD } = require('./connections')
const { TYPE } = require('./frames')
const { hexOf } = require('./network')

const [WATCH, HAVE, NEWS, ASK, SLICE, NO, CANCEL] = [3, 4, 5, 6, 7, 8, 9]
const BLOCK = 1024 * 1024
const DIGEST = 32
/** The kind, the digest of the file, the number of a block. */
const HEAD = 1 + DIGEST + 4
/** Further requests are refused, so that a new block spreads as a tree and not as a star. */
const MAX_JOBS = 2
/** The only watcher of a file may use the whole line. */
const MAX_JOBS_ALONE = 4
/** With those of peers that take nothing, each of which has a buffer. */
const MAX_ALL_JOBS = 8
const MAX_WATCHES = 64
/** Of a peer that Python has not accepted yet. */
const MAX_WATCHES_OF_STRANGER = 4
const MAX_GRANT = 4096
/** Bytes per second of what costs a peer nothing: grants, news, refused requests. */
const MAX_CHATTER = 128 * 1024
const NEWS_MS = 100
const TICK_MS = 1000
const SILENCE_MS = 5000
/** A peer that takes nothing for so long does not count, and then it must go. */
const SLOW_MS = 500
const STUCK_MS = 10_000
const PAUSE_MS = 250
const BURST_MS = 20
/** A killed sidecar repeats the blocks that are not saved and those under way: at most 16. */
const SAVE_BLOCKS = 8
const MAX_UNSAVED = 12

/** Sent messages are garbage of 64 KiB each, of which Node lets 64 MiB gather before it collects them. */
const COLLECT_BYTES = 8 * 1024 * 1024

v8.setFlagsFromString('--expose-gc')
const collect = vm.runInNewContext('gc')
const [read, write, sync] = [fs.read, fs.write, fs.fdatasync].map(promisify)
/** Buffers of whole blocks are used again: received slices that are kept for a block make memory grow until the next full collection. */
const pool = []
const takeBuffer = () => pool.pop() ?? Buffer.allocUnsafeSlow(BLOCK)
const u32 = (value) => Buffer.of(value, value >> 8, value >> 16, value >>> 24)
const idOf = (digest, index) => `${digest} ${index}`

/** Bytes that leave at a rate. */
class Uplink {
  /** In bytes per second; null for no limit, 0 for a pause. */
  rate = null
  #paidUntil = 0

  async take(bytes) {
    while (this.rate === 0) await sleep(PAUSE_MS)
    if (this.rate === null) return
    const now = performance.now()
    this.#paidUntil = Math.max(this.#paidUntil, now - BURST_MS) + (bytes / this.rate) * 1000
    if (this.#paidUntil > now) await sleep(this.#paidUntil - now)
  }
}

/** A file that we copy, with the digests of its blocks and a bitmap of those on the disk; or a whole file that we send. */
class File {
  users = 0
  unsaved = 0
  saving = null

  constructor({ digest, path, size, blocks, bitmap, bits }) {
    Object.assign(this, { digest, size, count: Math.ceil(size / BLOCK) })
    this.bits = bits === undefined ? Buffer.alloc((this.count + 7) >> 3, 255) : Buffer.from(bits, 'hex')
    this.bits[this.bits.length - 1] &= 255 >> (-this.count & 7)
    this.data = fs.openSync(path, bits === undefined ? 'r' : 'r+')
    if (bits === undefined) return
    this.blocks = fs.openSync(blocks)
    this.bitmap = fs.openSync(bitmap, 'r+')
  }

  has = (index) => index < this.count && ((this.bits[index >> 3] >> (index & 7)) & 1) === 1
  lengthOf = (index) => Math.min(BLOCK, this.size - index * BLOCK)

  isRight(index, digest) {
    const wanted = Buffer.alloc(DIGEST)
    fs.readSync(this.blocks, wanted, 0, DIGEST, index * DIGEST)
    return digest.equals(wanted)
  }

  /** Makes blocks durable, and then the bitmap that claims them. */
  save() {
    this.saving ??= this.#save().finally(() => Object.assign(this, { saving: null }))
    return this.saving
  }

  async #save() {
    const [bits, count] = [Buffer.from(this.bits), this.unsaved]
    await sync(this.data)
    await write(this.bitmap, bits, 0, bits.length, 0)
    await sync(this.bitmap)
    this.unsaved -= count
  }

  close() {
    for (const each of [this.data, this.blocks, this.bitmap]) if (each !== undefined) fs.closeSync(each)
  }
}

/** The peer of one connection. */
class Peer {
  chatter = 0
  heardAt = 0
  /** Since when it takes nothing. */
  stuckSince = Infinity
  /** Its blocks leave one after the other. */
  line = Promise.resolve()
  ours = new Map() // digest -> whether the bitmap of this file, which we watch there, has come
  theirs = new Map() // digest -> file that the peer watches here; null until Python has decided
  asked = new Map() // id -> our request
  jobs = new Map() // id -> the peer's request

  constructor(connection) {
    const { stream, info } = connection
    Object.assign(this, { connection, stream, info, key: hexOf(stream.remotePublicKey) })
    for (const event of ['drain', 'close']) stream.on(event, () => this.resume?.())
  }

  write(kind, digest, numbers, rest = Buffer.alloc(0)) {
    if (this.stream.destroying) return
    this.stream.write(Buffer.concat([Buffer.of(kind), Buffer.from(digest, 'hex'), ...numbers.map(u32), rest]))
    if (this.stream._writableState.buffered > MAX_UNSENT) this.connection.fail('FLOW_CONTROL', 'the peer asks but does not read')
  }

  async drained() {
    this.stuckSince = Date.now()
    await new Promise((resolve) => Object.assign(this, { resume: resolve }))
    this.stuckSince = Infinity
  }
}

class Copying {
  files = new Map() // digest -> file
  peers = new Map() // key -> peer
  uplink = new Uplink()
  #sent = 0 // bytes since the last collection
  #fresh = new Map() // file -> blocks to tell its watchers about

  constructor(outbox) {
    this.outbox = outbox
    setInterval(() => this.#tick(), TICK_MS).unref()
  }

  /** The calls that Python may make. */
  calls = {
    copyOpen: (places) => {
      this.#refuse(this.files.get(places.digest))
      Object.assign(this.#open(places), { isWanted: true, users: 1 })
    },
    copyWatch: ({ digest, key, grant }) => {
      const peer = this.peers.get(key)
      if (peer === undefined || peer.ours.has(digest) || !this.files.has(digest)) return
      peer.ours.set(digest, false)
      peer.write(WATCH, digest, [], Buffer.from(grant, 'hex'))
    },
    copyAsk: ({ digest, key, index }) => this.#ask(this.files.get(digest), this.peers.get(key), index),
    copyCancel: ({ digest, key, index }) => this.#cancel(this.peers.get(key), idOf(digest, index)),
    copyDrop: ({ digest, key }) => this.#drop(this.peers.get(key), digest),
    /** Python has written this block, and checked it. */
    copyHave: ({ digest, index }) => this.#gain(this.files.get(digest), index, null),
    /** Peers may go on to read a whole file. */
    copyClose: async ({ digest, isWhole }) => {
      const file = this.files.get(digest)
      for (const peer of this.peers.values()) this.#drop(peer, digest)
      if (!isWhole) this.#refuse(file)
      while (file?.unsaved > 0) await file.save()
      if (file?.isWanted) this.#release(Object.assign(file, { isWanted: false }))
    },
    copyRate: ({ rate }) => Object.assign(this.uplink, { rate }),
    copyAllow: ({ key, ...places }) => {
      const peer = this.peers.get(key)
      if (peer?.theirs.get(places.digest) !== null) return
      if (places.path === undefined && !this.files.has(places.digest)) return this.#end(peer, places.digest)
      const file = this.files.get(places.digest) ?? this.#open(places)
      file.users += 1
      peer.theirs.set(file.digest, file)
      peer.write(HAVE, file.digest, [], file.bits)
    },
    copyDeny: ({ key, digest }) => this.#end(this.peers.get(key), digest),
  }

  opened(connection) {
    const peer = new Peer(connection)
    connection.copying = peer
    this.peers.set(peer.key, peer)
  }

  closed({ copying: peer }) {
    if (this.peers.get(peer.key) === peer) this.peers.delete(peer.key)
    for (const id of peer.asked.keys()) this.#forget(peer, id)
    for (const digest of peer.theirs.keys()) this.#unwatched(peer, digest)
  }

  /** Returns whether a peer may send this message. If not, its connection ends. */
  receive(connection, message) {
    if (this.#receive(connection, message)) return true
    const key = connection.copying.key
    for (const digest of connection.copying.ours.keys()) this.#say('bad', { digest, key, why: 'broke the protocol' })
    return false
  }

  #receive({ copying: peer, isStranger }, message) {
    const [kind, digest, size] = [message[0], message.toString('hex', 1, 1 + DIGEST), message.length]
    const index = size < HEAD ? 0 : message.readUInt32LE(HEAD - 4)
    if (kind !== SLICE && kind !== HAVE) peer.chatter += size + OVERHEAD
    if (peer.chatter > MAX_CHATTER || size < 1 + DIGEST) return false
    if (isStranger && kind !== WATCH && peer.ours.size + peer.theirs.size === 0) return false
    if (kind === WATCH) {
      const isRight = size <= 1 + DIGEST + MAX_GRANT && peer.theirs.size < (isStranger ? MAX_WATCHES_OF_STRANGER : MAX_WATCHES)
      return isRight && this.#onWatch(peer, digest, message.subarray(1 + DIGEST))
    }
    if (kind === HAVE) return this.#onHave(peer, digest, message.subarray(1 + DIGEST))
    if (size < HEAD) return false
    if (kind === NEWS) return this.#onNews(peer, digest, index, message.subarray(HEAD))
    if (kind === ASK) return this.#onAsk(peer, digest, index)
    if (kind === SLICE) return this.#onSlice(peer, digest, index, message.subarray(HEAD))
    if (kind === NO) return this.#onNo(peer, digest, index)
    const job = peer.jobs.get(idOf(digest, index))
    if (job !== undefined) job.isCanceled = true
    return kind === CANCEL
  }

  #onWatch(peer, digest, grant) {
    if (grant.length === 0) this.#unwatched(peer, digest)
    else if (peer.theirs.has(digest)) return false
    else {
      peer.theirs.set(digest, null)
      this.#say('grant', { key: peer.key, digest, grant: hexOf(grant) })
    }
    return true
  }

  #onHave(peer, digest, bits) {
    if (!peer.ours.has(digest)) return true // dropped meanwhile
    if (bits.length > 0 && (peer.ours.get(digest) || bits.length !== this.files.get(digest).bits.length)) return false
    if (bits.length > 0) peer.ours.set(digest, true)
    else peer.ours.delete(digest)
    this.#say('have', { digest, key: peer.key, bits: hexOf(bits) })
    return true
  }

  #onNews(peer, digest, queue, indexes) {
    peer.heardAt = Date.now()
    if (!peer.ours.has(digest)) return true // dropped meanwhile
    const blocks = Array.from({ length: indexes.length >> 2 }, (_, at) => indexes.readUInt32LE(4 * at))
    if (blocks.some((index) => index >= this.files.get(digest).count)) return false
    this.#say('news', { digest, key: peer.key, queue, blocks })
    return true
  }

  #onAsk(peer, digest, index) {
    const file = peer.theirs.get(digest)
    const job = { peer, file, index, id: idOf(digest, index), isCanceled: false }
    if (peer.jobs.has(job.id)) return false
    const [queue, all] = [this.#countJobs(SLOW_MS), this.#countJobs(STUCK_MS)]
    const most = this.#watchersOf(file).length > 1 ? MAX_JOBS : MAX_JOBS_ALONE
    if (file?.has(index) && Math.max(queue, peer.jobs.size) < most && all < MAX_ALL_JOBS) this.#serve(job)
    else peer.write(NO, digest, [index])
    return true
  }

  /** Counts the requests of peers that have taken something within this time. */
  #countJobs(ms) {
    return [...this.peers.values()].reduce((sum, { jobs, stuckSince }) => sum + (Date.now() - stuckSince < ms ? jobs.size : 0), 0)
  }

  #onNo(peer, digest, index) {
    peer.heardAt = Date.now()
    const request = peer.asked.get(idOf(digest, index))
    if (request?.isCanceled === false) this.#say('no', { digest, key: peer.key, index })
    if (request !== undefined) this.#forget(peer, idOf(digest, index))
    return true
  }

  #onSlice(peer, digest, index, slice) {
    peer.heardAt = Date.now()
    const request = peer.asked.get(idOf(digest, index))
    if (slice.length !== Math.min(MAX_PART, request?.length - request?.got)) return false // not asked, or too long
    if (!request.isCanceled) {
      request.bytes ??= takeBuffer()
      request.hash.update(slice)
      slice.copy(request.bytes, request.got)
    }
    request.got += slice.length
    if (request.got < request.length) return true
    const { file, bytes, isCanceled } = request
    if (!isCanceled && file.isRight(index, request.hash.digest())) {
      request.bytes = null
      this.#store(file, index, peer.key, bytes)
    } else if (!isCanceled) this.#say('bad', { digest, key: peer.key, why: 'wrong hash' })
    this.#forget(peer, idOf(digest, index))
    return true
  }

  #ask(file, peer, index) {
    const id = idOf(file?.digest, index)
    if (!peer?.ours.get(file?.digest)) return
    if (peer.asked.has(id)) return this.#say('no', { digest: file.digest, key: peer.key, index }) // the peer has not confirmed a CANCEL
    const progress = { length: file.lengthOf(index), hash: createHash('sha256'), bytes: null, got: 0 }
    peer.asked.set(id, { file, index, ...progress, askedAt: Date.now(), isCanceled: false })
    file.users += 1
    peer.write(ASK, file.digest, [index])
  }

  /** The peer confirms it with a NO, unless the whole block is under way. */
  #cancel(peer, id) {
    const request = peer?.asked.get(id)
    if (request === undefined || request.isCanceled) return
    request.isCanceled = true
    peer.write(CANCEL, request.file.digest, [request.index])
  }

  #forget(peer, id) {
    const { file, bytes } = peer.asked.get(id)
    peer.asked.delete(id)
    if (bytes !== null) pool.push(bytes)
    this.#release(file)
  }

  #drop(peer, digest) {
    if (!peer?.ours.has(digest)) return
    for (const [id, { file }] of peer.asked) if (file.digest === digest) this.#cancel(peer, id)
    peer.ours.delete(digest)
    peer.write(WATCH, digest, [])
    this.#endIfIdle(peer)
  }

  /** Ends a connection that only copying needed. */
  #endIfIdle({ stream, info, ours, theirs }) {
    const isNeeded = ours.size > 0 || theirs.size > 0 || info.explicit || info.topics.length > 0
    if (stream.isInitiator && !isNeeded) stream.end()
  }

  #unwatched(peer, digest) {
    const file = peer.theirs.get(digest)
    peer.theirs.delete(digest)
    for (const job of peer.jobs.values()) if (job.file === file) job.isCanceled = true
    if (file) this.#release(file)
    this.#endIfIdle(peer)
  }

  /** The peer may not watch this file, or not any longer. */
  #end(peer, digest) {
    if (!peer?.theirs.has(digest)) return
    peer.write(HAVE, digest, [])
    this.#unwatched(peer, digest)
  }

  #watchersOf(file) {
    return !file ? [] : [...this.peers.values()].filter((peer) => peer.theirs.get(file.digest) === file)
  }

  #refuse(file) {
    for (const peer of this.#watchersOf(file)) this.#end(peer, file.digest)
  }

  /** Reads the block at once, and sends it after the peer's earlier ones. */
  #serve(job) {
    const { peer, file, index } = job
    const bytes = takeBuffer()
    const reading = read(file.data, bytes, 0, file.lengthOf(index), index * BLOCK)
    peer.jobs.set(job.id, job)
    file.users += 1
    peer.line = Promise.all([reading, peer.line])
      .then(([{ bytesRead }]) => this.#send(job, bytes.subarray(0, bytesRead)))
      .catch(() => this.#refuse(file)) // it is not whole any more
      .then(() => {
        peer.jobs.delete(job.id)
        pool.push(bytes)
        this.#release(file)
      })
  }

  async #send(job, block) {
    const { peer, file, index } = job
    if (block.length < file.lengthOf(index)) throw new Error('the file is too short')
    for (let at = 0; at < block.length; at += MAX_PART) {
      const end = Math.min(at + MAX_PART, block.length)
      await this.uplink.take(end - at)
      if (peer.stream.destroying) return
      if (job.isCanceled) return peer.write(NO, file.digest, [index])
      const message = peer.stream.alloc(HEAD + end - at)
      message[0] = SLICE
      message.write(file.digest, 1, 'hex')
      message.writeUInt32LE(index, HEAD - 4)
      block.copy(message, HEAD, at, end)
      if (!peer.stream.write(message)) await peer.drained()
      this.#sent += message.length
      if (this.#sent > COLLECT_BYTES) {
        this.#sent = 0
        collect({ type: 'minor' })
      }
    }
  }

  async #store(file, index, key, bytes) {
    file.users += 1
    try {
      while (file.unsaved >= MAX_UNSAVED) await file.save()
      const { bytesWritten } = await write(file.data, bytes, 0, file.lengthOf(index), index * BLOCK)
      if (bytesWritten < file.lengthOf(index)) throw new Error('the disk is full')
      this.#gain(file, index, key)
      if (file.unsaved >= SAVE_BLOCKS) await file.save()
    } catch (error) {
      this.#say('failed', { digest: file.digest, text: error.message })
    }
    pool.push(bytes)
    this.#release(file)
  }

  /** A block is in the file, and right. */
  #gain(file, index, key) {
    if (file === undefined || file.has(index)) return
    file.bits[index >> 3] |= 1 << (index & 7)
    file.unsaved += 1
    if (key !== null) this.#say('block', { digest: file.digest, index, key })
    if (this.#fresh.size === 0) setTimeout(() => this.#tellNews(), NEWS_MS)
    if (!this.#fresh.has(file)) this.#fresh.set(file, [])
    this.#fresh.get(file).push(index)
  }

  #tellNews() {
    const [fresh, queue] = [this.#fresh, this.#countJobs(SLOW_MS)]
    this.#fresh = new Map()
    for (const peer of this.peers.values())
      for (const file of peer.theirs.values()) if (fresh.has(file)) peer.write(NEWS, file.digest, [queue, ...fresh.get(file)])
  }

  #tick() {
    const now = Date.now()
    for (const peer of this.peers.values()) {
      peer.chatter = 0
      if (now - peer.stuckSince > STUCK_MS) peer.connection.fail('FLOW_CONTROL', 'the peer takes no block')
      const files = new Set([...peer.jobs.values()].map((job) => job.file))
      for (const { digest } of files) peer.write(NEWS, digest, [this.#countJobs(SLOW_MS)])
      for (const request of peer.asked.values()) {
        if (now - Math.max(request.askedAt, peer.heardAt) <= SILENCE_MS) continue
        request.askedAt = now
        if (request.isCanceled) peer.connection.fail('FLOW_CONTROL', 'the peer does not answer')
        else this.#say('silent', { digest: request.file.digest, key: peer.key })
      }
    }
  }

  #open(places) {
    const file = new File(places)
    this.files.set(file.digest, file)
    return file
  }

  /** Closes a file when its last user has released it. */
  #release(file) {
    file.users -= 1
    if (file.users > 0) return
    if (this.files.get(file.digest) === file) this.files.delete(file.digest)
    file.close()
  }

  #say(kind, facts) {
    this.outbox.json(TYPE.EVENT, 0, { event: 'copy', kind, ...facts })
  }
}

module.exports = { Copying }
