-- Admission for nginx-lua.conf: who a key is (Redis, remembered for 3 s), how many requests it had this minute (Redis, INCR and
-- EXPIRE in one write), and the assertion that the upstream gets. Debian has no client library for Redis that does not block
-- nginx, so the few lines of RESP that this needs are here, over nginx's own sockets.
local admission = { limit = 1000000, port = 6379 }
local found_keys = ngx.shared.found_keys

local REMEMBERED_S = 3
local WAIT_MS = 1000
local POOL_IDLE_MS = 60000
local POOL_SIZE = 512

local function command(...)
    local parts = { "*", select("#", ...), "\r\n" }
    for place = 1, select("#", ...) do
        local word = tostring((select(place, ...)))
        parts[#parts + 1] = "$" .. #word .. "\r\n" .. word .. "\r\n"
    end
    return table.concat(parts)
end

-- Reads one answer: a number, a text, or nil for none.
local function answer(socket)
    local line = assert(socket:receive())
    local kind, rest = line:sub(1, 1), line:sub(2)
    if kind == ":" then
        return tonumber(rest)
    end
    if kind == "$" and rest ~= "-1" then
        local text = assert(socket:receive(tonumber(rest)))
        assert(socket:receive(2))
        return text
    end
    assert(kind ~= "-", rest)
    return nil
end

-- The key's assertion (nil if there is no such key) and its count in this minute.
local function ask(key, remembered)
    local socket = ngx.socket.tcp()
    socket:settimeout(WAIT_MS)
    assert(socket:connect("127.0.0.1", admission.port, { pool_size = POOL_SIZE }))
    local window = "window:" .. key .. ":" .. math.floor(ngx.time() / 60)
    local look_up = remembered and "" or command("GET", "key:" .. key)
    assert(socket:send(look_up .. command("INCR", window) .. command("EXPIRE", window, 120)))
    local assertion = remembered or answer(socket)
    local count = answer(socket)
    answer(socket)
    socket:setkeepalive(POOL_IDLE_MS, POOL_SIZE)
    return assertion, count
end

function admission.admit()
    local credential = ngx.var.http_authorization
    local key = credential and credential:match("^Bearer (%w+_%w+)$")
    if not key then
        return ngx.exit(ngx.HTTP_UNAUTHORIZED)
    end
    local remembered = found_keys:get(key)
    local is_well, assertion, count = pcall(ask, key, remembered)
    if not is_well then
        return ngx.exit(ngx.HTTP_SERVICE_UNAVAILABLE)
    end
    if not assertion then
        return ngx.exit(ngx.HTTP_UNAUTHORIZED)
    end
    if not remembered then
        found_keys:set(key, assertion, REMEMBERED_S)
    end
    if count > admission.limit then
        ngx.header["Retry-After"] = 60 - ngx.time() % 60
        return ngx.exit(ngx.HTTP_TOO_MANY_REQUESTS)
    end
    ngx.var.key_id = key:sub(1, 15)
    ngx.req.clear_header("Authorization")
    ngx.req.clear_header("X-Api-Key")
    ngx.req.set_header("X-Assure-Jwt-Assertion", assertion)
end

return admission
