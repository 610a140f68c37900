-- segments: turns the head of a name's shared filters: which one is asked, which one is being built, which one was asked before; how far the build
-- came, and what change feeds have told.
--
-- KEYS 1 head, a hash of the fields serving, rows, building, builder, left, old, moved, fed, lag
-- ARGV 1 turn (keep, begin, resume, leave, move, abandon, drop, forget, feed), 2 layout, 3 builder, 4 rows, how far the build came, or ms of lag,
--      5 expiry ms, 6 how long an old filter is kept, ms, 7 channel, 8 event of a move, 9 the builder that the head had (begin, resume), or the moment
--      before which the lag was measured (feed)
-- Returns {1 if the turn was made or had been, else 0, now, serving, rows, building, old, replaced, moved, builder, left, fed, lag}; what there is
-- not is empty
--
-- Atomic: of two builders the one that began last, or that took over, moves, and the other, however long it was paused, does not; nor does one whose
-- turn comes late. A repeated turn finds what it made.

local head, turn, layout, builder = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local kind = redis.call('TYPE', head).ok
if turn == 'begin' and kind ~= 'hash' and kind ~= 'none' then redis.call('UNLINK', head) end

local function field(name) return redis.call('HGET', head, name) or '' end
local function forget() redis.call('HDEL', head, 'building', 'builder', 'left') end
local function number(name) return tonumber(field(name)) or 0 end

local builds = field('building') == layout and field('builder') == builder
local asRead = number('builder') == (tonumber(ARGV[9]) or 0)
local code, replaced = 1, ''
if turn == 'begin' then
  if asRead then
    replaced = field('building')
    forget()
    redis.call('HSET', head, 'building', layout, 'builder', builder)
  elseif not builds then
    code = 0
  end
elseif turn == 'resume' then
  if asRead and field('building') == layout and field('left') ~= '' then
    redis.call('HSET', head, 'builder', builder)
  elseif not builds then
    code = 0
  end
elseif turn == 'leave' then
  if builds then redis.call('HSET', head, 'left', ARGV[4]) else code = 0 end
elseif turn == 'move' and builds then
  replaced = field('old')
  local was = field('serving')
  forget()
  redis.call('HDEL', head, 'old')
  redis.call('HSET', head, 'serving', layout, 'rows', ARGV[4], 'moved', int(now))
  if was ~= '' then redis.call('HSET', head, 'old', was) end
elseif turn == 'move' and field('serving') ~= layout then
  code = 0
elseif turn == 'abandon' then
  if builds then forget() else code = 0 end
elseif turn == 'drop' and layout ~= '' and field('serving') == layout then
  replaced = layout
  redis.call('HDEL', head, 'serving', 'rows')
elseif turn == 'forget' then
  replaced = field('serving')
  if replaced == '' then replaced = field('building') end -- what is not returned ends by itself
  redis.call('HDEL', head, 'serving', 'rows', 'old')
  forget()
elseif turn == 'feed' then
  redis.call('HINCRBY', head, 'fed', 1)
  redis.call('HSET', head, 'lag', int(tonumber(ARGV[4]) + math.max(0, now - tonumber(ARGV[9]))))
end
if (turn == 'keep' or turn == 'drop') and replaced == '' and field('old') ~= '' and now >= number('moved') + tonumber(ARGV[6]) then
  replaced = field('old')
  redis.call('HDEL', head, 'old')
end
if replaced == layout and turn == 'begin' then replaced = '' end
if turn == 'move' then redis.call('PUBLISH', ARGV[7], ARGV[8]) end -- also one that was refused: the event has a number, which would be missed
redis.call('PEXPIRE', head, ARGV[5])
return {
  code, now, field('serving'), field('rows'), field('building'), field('old'), replaced, number('moved'), field('builder'), field('left'), field('fed'),
  field('lag'),
}
