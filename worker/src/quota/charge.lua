-- Charges tokens to a tenant, once until they are spent: checks everything, then writes everything or nothing.
--
-- KEYS[1]  hash: level (units), at_ms (when level was true), day (UTC, since 1970), day_tokens.
--          Absent is the same as a full bucket on a fresh day, so it expires when both are true again.
-- KEYS[2]  set: which pieces of this work are charged and not spent
-- KEYS[3]  hash: the day's tokens by what they were spent on, for the tenant to see
-- ARGV     tokens, tokens a minute, burst tokens, tokens a day, piece in KEYS[2], ms to remember the charge, field of KEYS[3],
--          ms to keep KEYS[3]
-- Answers  {'charged', 0}, {'already', 0}, {'minute', wait_ms} or {'day', wait_ms}
--
-- A unit is 1/60,000 token: tokens a minute are the same number in units a millisecond, so all numbers here are integers.
-- The caller keeps them below 2^53, where Lua's numbers are exact. The clock is Redis' own: workers' clocks differ.

local UNITS_PER_TOKEN = 60000
local DAY_MS = 86400000

local tokens = tonumber(ARGV[1])
local rate = tonumber(ARGV[2])
local burst = tonumber(ARGV[3])
local day_limit = tonumber(ARGV[4])
local piece = ARGV[5]
local keep_ms = tonumber(ARGV[6])

if redis.call('SISMEMBER', KEYS[2], piece) == 1 then
  return {'already', 0}
end

-- Zero is closed. Only a change of the limits helps, so look again in a day.
if rate == 0 or burst == 0 then
  return {'minute', DAY_MS}
end
if day_limit == 0 then
  return {'day', DAY_MS}
end

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local today = math.floor(now_ms / DAY_MS)
local midnight_ms = DAY_MS - now_ms % DAY_MS

local full = burst * UNITS_PER_TOKEN
local level = full
local day_tokens = 0
local seen = redis.call('HMGET', KEYS[1], 'level', 'at_ms', 'day', 'day_tokens')
if seen[1] then
  level = math.min(tonumber(seen[1]), full)
  -- A clock that went back (a replica took over) refills nothing, and begins no day.
  local elapsed_ms = math.max(now_ms - tonumber(seen[2]), 0)
  -- Compared before multiplied: the product could pass 2^53 after a long rest.
  if elapsed_ms >= (full - level) / rate then
    level = full
  else
    level = level + elapsed_ms * rate
  end
  if tonumber(seen[3]) >= today then
    day_tokens = tonumber(seen[4])
  end
end

-- A chunk larger than the burst needs a full bucket, one larger than the day needs a fresh day: else it waits for ever.
local needed = math.min(tokens, burst) * UNITS_PER_TOKEN
local minute_wait_ms = math.max(math.ceil((needed - level) / rate), 0)
local day_wait_ms = 0
if day_tokens + math.min(tokens, day_limit) > day_limit then
  day_wait_ms = midnight_ms
end
if day_wait_ms > minute_wait_ms then
  return {'day', day_wait_ms}
end
if minute_wait_ms > 0 then
  return {'minute', minute_wait_ms}
end

level = level - tokens * UNITS_PER_TOKEN
-- Lua's own conversion keeps 14 digits only.
redis.call('HSET', KEYS[1],
  'level', string.format('%.0f', level),
  'at_ms', string.format('%.0f', now_ms),
  'day', string.format('%.0f', today),
  'day_tokens', string.format('%.0f', day_tokens + tokens))
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', math.max(math.ceil((full - level) / rate), midnight_ms)))
redis.call('SADD', KEYS[2], piece)
-- The set serves many pieces: it stays for the one that asks longest. Without an expiry PTTL is -1.
if redis.call('PTTL', KEYS[2]) < keep_ms then
  redis.call('PEXPIRE', KEYS[2], string.format('%.0f', keep_ms))
end
redis.call('HINCRBY', KEYS[3], ARGV[7], ARGV[1])
redis.call('PEXPIRE', KEYS[3], ARGV[8])
return {'charged', 0}
