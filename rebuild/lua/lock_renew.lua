-- renew: lets a grant stand for another lease.
--
-- KEYS 1 the name's sorted set
-- ARGV 1-6 as in the head, 7 token, 8 lease ms
-- Returns {1, now us, rest of the lease ms, token, 0}    it stands
--         {0, now us, 0, hw, 0}                          it is over, or was another grant
--
-- Atomic: that the grant stands, with this token, and its new end are one moment. Else: 1 A's lease stands; 2 it ends, B is granted; 3 A's end is
-- written, and two hold.
-- A repeat moves the end on. A lease that is past is not revived, even if nobody has taken its place: its holder was told so.

local token, lease = tonumber(ARGV[7]), tonumber(ARGV[8])
local standing = score('h:' .. owner)

if standing and standing - HELD > now and score('t:' .. owner) == token then
  -- Not beyond what sweep leaves, or the answer would promise more than is kept.
  local last = math.min(math.max(standing - HELD, now + lease), now + math.max(record.span, lease))
  expire(last) -- first, so that a full Redis takes it
  redis.call('ZADD', key, int(HELD + last), 'h:' .. owner)
  if lease > record.span then
    record.span = lease
    save()
  end
  return { 1, micros, last - now, token, 0 }
end

expire()
sweep()
refuse(token)
return finish({ 0, micros, 0, record.hw, 0 })
