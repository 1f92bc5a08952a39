"""What nfsbox offers to nfsadmin (bus) and to reintegre (TCP). The two lists are the contract.

**Bus, target "AM/nfsbox"** (requests of nfsadmin; the reply comes when it is done; durable means fsynced).
`state` is an optional map that is written durably to SAFEVAR/modules/AM/rfs/state before the operation has any
effect; nfsadmin computes it with nfsbox.generations, nfsbox only keeps it.

====================  ==============================================================================================
prepare               (degraded=False) repair what a crash left, check `tocheck`, replace the links by mounts,
                      role standby (read-only). -> {state: map|None, journal: "clean"|"crash"|"none"|"bad",
                      dirty: count, roots: [dir]}. Errors: tocheck, mount, root
primary               (peer=None, paired=False, state=None) writable. paired=True: the peer was up to date at the
                      hand-over and comes back with its token; writes wait for it. paired=False: changes are
                      tracked; a secondary may connect and resynchronise. -> {}
secondary             (peer, address, port, source=None, paired=False, state=None) read-only; connects to the peer's
                      nfsbox. -> {session: id} once the stream stands. Errors: connect, refused
standby               (state=None) read-only, stream closed. -> {}
alone                 (state=None) the peer is gone: durable record first, then waiting writes go on. -> {held: n}
demote                (timeout=60) read-only, every write acknowledged, both sides on disk. -> {token: bytes|None}
                      Error: not_paired, timeout (the role is then primary again)
release               unmount, links restored, journal closed cleanly. -> {}
state_get             -> {state: map|None}
state_set             (state) durable. -> {}
inconsistent          (on) durable mark of the secondary: reintegration has begun / ended. Kept in `state` as
                      `consistent`. -> {}
status                -> {role, degraded, peer, session: none|resync|paired|lost, held, pending, revisit, dirty_files,
                      dirty_dirs, replication_kbs, reintegration_kbs, bytes_sent, frames_sent, mounts: [dir],
                      journal_reliable}
configure             (rfs=map) dynamic attributes changed: nbrei, reitimeout, reidetail, async. -> {}
====================  ==============================================================================================

Notifications and requests of nfsbox to "AM/nfsadmin":

- notify `replication_lost` (reason, since): primary with a paired peer; writes are held until `alone`.
- notify `session_lost` (reason, role): a stream that was not paired broke (no write waits), or, on the secondary,
  any stream broke.
- notify `session_open` (peer, paired, role).
- request `pair` (peer, session) during END; nfsadmin has heart record paired=up durably, then replies {state: map};
  nfsbox writes that state, forgets the tracked changes and tells the secondary.
- notify `rfs_bandwidth` (replication, reintegration): KB/s over 3 seconds, on change, primary only.

**TCP, the resynchronisation service of the primary** (`nfsbox.remote.Remote` is the client; a frame REQUEST with a
msgpack map {op, ...}, answered by a frame REPLY {ok, ...} or {ok: False, errno, text}). Every connection serves one
request at a time; open one per thread. `root` is the index of the replicated directory, paths are bytes.

====================  ==============================================================================================
info                  -> {state, zone_size, packet, session, roots: [dir], journal}
dirty                 -> {reliable: bool, cursor} then `dirty_next` (cursor) -> {files: [[root, path, ino, [zones]|
                      None=all]], dirs: [[root, path]], cursor|None}
list                  (root, path, cursor=0) -> {entries: [[name, mode, uid, gid, size, atime, mtime, ino, nlink, rdev,
                      blocks, extra]], cursor|None}; extra = {t: target, x: {name: value}} or None; at most 4096
                      entries a reply; the first reply has `self`: the same for the directory
stat                  (root, path) -> {entry: [...]|None}
hash                  (root, path, zones: [[off, len]]) -> {ino, size, digests: [16 bytes]} blake2b; beyond the end: b""
push_entry            (root, path) make or correct the entry at the secondary: type, mode, owner, times, xattrs, link
                      target, hard links, size (content is not sent). -> {kind: "file"|"dir"|"other"|"gone",
                      size, ino}
push_zone             (root, path, off, len) -> {sent: bytes}; holes stay holes
push_link             (root, existing, path) make path a hard link of existing
push_delete           (root, path) remove at the secondary if it does not exist here. -> {gone: bool}
finish                (root, path) times and size of a file whose zones are all pushed. -> {}
flush                 commit at the secondary (reicommit). -> {}
revisit               -> {paths: [[root, path]]} taken off the list: compare these entries again (not below them,
                      unless they are new directories)
end                   -> {done: bool, revisit: count, state: map|None}: True once the primary is paired durably and the
                      secondary works strictly; False when there are paths to revisit first
progress              (files, files_total, bytes, bytes_total, ...) shown by `status` of the primary. -> {}
====================  ==============================================================================================
"""
