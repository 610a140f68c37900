-- copy: one step of keeping a copy of a value in another slot, by mode.
--
-- lease  KEYS 1 the copy, 2 its lease; ARGV 1 mode, 2 token, 3 lease ms
--        Returns {1, now} granted; {0, now} another has it
-- note   KEYS 1 the value, 2 the note; ARGV 1 mode, 2 copies there may be, 3 life of the note ms
--        Returns {1, now, value?}: what stands there once the note does
-- store  KEYS 1 the copy, 2 its lease; ARGV 1 mode, 2 token, 3 what the value's key held, 4 life ms
--        Returns {1, now} stored; {0, now} refused: the lease is gone
-- drop   KEYS 1 the copy, 2 its lease; ARGV 1 mode, 2 channel, 3 event; empty: nobody is told
--        Returns {1, now}
--
-- Atomic: note leaves the note before it reads, else a change between the two finds no note and drops nothing; store must not come between
-- the end of its lease and what it writes; an event heard before its copy is gone lets the hearer read that again. A repeat of lease, note or
-- drop does it once more, one of store is refused.

local mode = ARGV[1]
if mode == 'lease' then
  local granted = redis.call('SET', KEYS[2], ARGV[2], 'NX', 'PX', ARGV[3])
  return { granted and 1 or 0, now }
elseif mode == 'note' then
  redis.call('SET', KEYS[2], int(math.max(noted(KEYS[2]), tonumber(ARGV[2]))), 'PX', ARGV[3])
  return { 1, now, read('GET', KEYS[1]) }
elseif mode == 'store' then
  if read('GET', KEYS[2]) ~= ARGV[2] then return { 0, now } end
  redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
  redis.call('DEL', KEYS[2])
  return { 1, now }
end
redis.call('UNLINK', KEYS[1], KEYS[2])
if ARGV[3] ~= '' then redis.call('PUBLISH', ARGV[2], ARGV[3]) end
return { 1, now }
