-- fill: stores what was loaded under a lease, if the lease still stands, and gives the lease back.
--
-- KEYS 1 value, 2 guard, 3 note of copies (in a Cluster)
-- ARGV 1 generation of the grant, 2 token, 3 head (envelope bytes 0-7), 4 tail (row version, cost: bytes 40-51), 5 soft ms, 6 hard ms,
--      7 payload, 8 delete window ms, 9 channel, 10 ready event, 11 stamp of the grant, 12 first miss (1 or 0): store it only if
--      somebody waits for it or something stands in its place
-- Returns {1, now, hard end, now, copies}      stored; the caller drops the copies of what stood here before
--         {2, now, hard end, stored at, copies} stored by an earlier sending of this call
--         {3, now, hard end, now}              a first miss, not stored; it would have lived so long
--         {0, now}                             refused: the lease was revoked, lost or taken over
--         {-1, now}                            not stored: the delete window it was granted in is over, or "absent" where an announcement stands
--         {-3, now}                            not stored: the row is older than the stored one or than the oldest allowed
--
-- Atomic: an invalidation between the check of the lease and the store would be overtaken by an older value.
-- A repeat changes nothing: its own token is in the stored value. One of a first miss that was not stored is refused.

local generation, token = tonumber(ARGV[1]), ARGV[2]
local head, tail, window = ARGV[3], ARGV[4], tonumber(ARGV[8])

local g = readGuard(KEYS[2])
local e, stored = peek(KEYS[1])
-- The stamp tells this grant from a later one of the same token, which a delayed copy of acquire makes after an invalidation.
if g.token ~= token or g.stamp ~= ARGV[11] then
  if e and string.sub(stored, 53, 68) == token then return { 2, now, e.hard, e.stored, noted(KEYS[3]) } end
  return { 0, now }
end

local cut = g.cut
endLease(g)
g.backEnd, g.failEnd, g.fails = 0, 0, 0
g.woken, g.waited = g.waited == 1, 0

local flags = string.byte(head, 4)
local marked = e and e.generation >= generation and has(e.flags, MARKER)
local code = 1
if cut ~= 0 and cut <= now or marked and has(flags, ABSENT) then
  code = -1
elseif has(flags, VERSIONED) then
  local version = hex(tail, 1)
  if version < g.minVersion then code = -3 end
  if e and e.generation >= generation and e.hard > now and has(e.flags, VERSIONED) and version < hex(stored, 41) then code = -3 end
end

-- A key of which anything stands, even of another type or unreadable (then stored is not ''), is no longer one that Redis has no trace of.
if code == 1 and ARGV[12] == '1' and not g.woken and stored == '' then code = 3 end

local hard = now + tonumber(ARGV[6])
if cut ~= 0 and cut < hard then hard = cut end
if code == 1 then
  local last = hard
  if marked then
    -- A value that ends before the announcement it covers leaves the announcement behind: after its hard end it is a marker.
    local left = redis.call('PTTL', KEYS[1])
    if now + left > hard then
      last = now + left
      head = string.sub(head, 1, 3) .. string.char(flags + MARKER) .. string.sub(head, 5)
    end
  end
  local soft = math.min(now + tonumber(ARGV[5]), hard)
  redis.call('SET', KEYS[1], envelope(head, generation, soft, hard, tail, token, ARGV[7]), 'PXAT', int(last))
end
saveGuard(KEYS[2], g, window)
wake(g, ARGV[9], ARGV[10])
if code > 0 then return { code, now, hard, now, noted(KEYS[3]) } end
return { code, now }
