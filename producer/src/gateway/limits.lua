-- Counts one request of a tenant against its requests a minute, or refuses it and counts nothing; and says what is left of
-- its tokens, which the workers count.
--
-- KEYS[1]  hash: level (units), at_ms (when level was true). Absent is the same as a full bucket, so it expires when full.
-- KEYS[2]  hash of the tokens, as the workers' script keeps it: level, at_ms, day, day_tokens
-- ARGV     requests a minute, tokens a minute, burst tokens, tokens a day
-- Answers  {1 if counted else 0, requests left, ms until all are back, ms until one is, tokens left, ms until all are back}
--
-- A unit is 1/60,000: so many a minute are the same number in units a millisecond. The clock is Redis' own.

local UNITS = 60000
local DAY_MS = 86400000

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

-- The level now of a bucket that refills at `rate` to `full`.
local function level_of(seen, at_ms, rate, full)
  if not seen then
    return full
  end
  local level = math.min(tonumber(seen), full)
  local elapsed_ms = math.max(now_ms - tonumber(at_ms), 0)
  if elapsed_ms >= (full - level) / rate then
    return full
  end
  return level + elapsed_ms * rate
end

local rate = tonumber(ARGV[1])
local full = rate * UNITS
local seen = redis.call('HMGET', KEYS[1], 'level', 'at_ms')
local level = level_of(seen[1], seen[2], rate, full)
local counted = 0
if level >= UNITS then
  counted = 1
  level = level - UNITS
  redis.call('HSET', KEYS[1], 'level', string.format('%.0f', level), 'at_ms', string.format('%.0f', now_ms))
  redis.call('PEXPIRE', KEYS[1], string.format('%.0f', math.ceil((full - level) / rate)))
end

local token_rate = tonumber(ARGV[2])
local token_full = tonumber(ARGV[3]) * UNITS
local day_limit = tonumber(ARGV[4])
local tokens = redis.call('HMGET', KEYS[2], 'level', 'at_ms', 'day', 'day_tokens')
local token_level = level_of(tokens[1], tokens[2], token_rate, token_full)
local left = math.max(math.floor(token_level / UNITS), 0)
local back_ms = math.ceil((token_full - token_level) / token_rate)
if tokens[3] and tonumber(tokens[3]) >= math.floor(now_ms / DAY_MS) then
  local left_today = math.max(day_limit - tonumber(tokens[4]), 0)
  if left_today < left then
    left = left_today
    back_ms = DAY_MS - now_ms % DAY_MS
  end
end

return {counted, math.floor(level / UNITS), math.ceil((full - level) / rate), math.max(math.ceil((UNITS - level) / rate), 0), left, back_ms}
