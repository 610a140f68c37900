package fleet

import (
	"bufio"
	"bytes"
	"crypto/sha1" //nolint:gosec // the name Redis gives a script
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/alicebob/miniredis/v2/server"
	lua "github.com/yuin/gopher-lua"
)

// interpreter runs Lua scripts against a miniredis, in one Lua state that outlives the runs. Miniredis would make a state for each call, which
// costs more than all else in a run.
type interpreter struct {
	state *lua.LState
	known map[string]*lua.LFunction // by text
	redis *server.Server            // of this run
	peer  *server.Peer              // under which scripts' commands reach it
	reply bytes.Buffer              // of the command under way
}

// interpreters are those that no run uses.
var interpreters struct {
	sync.Mutex
	idle []*interpreter
}

// takeInterpreter returns an interpreter for a server. Give it back.
func takeInterpreter(s *server.Server) *interpreter {
	interpreters.Lock()
	defer interpreters.Unlock()
	var i *interpreter
	if n := len(interpreters.idle); n > 0 {
		i, interpreters.idle = interpreters.idle[n-1], interpreters.idle[:n-1]
	} else {
		i = newInterpreter()
	}
	i.redis, i.peer = s, server.NewPeer(bufio.NewWriter(&i.reply))
	return i
}

func (i *interpreter) giveBack() {
	i.redis, i.peer = nil, nil
	interpreters.Lock()
	defer interpreters.Unlock()
	interpreters.idle = append(interpreters.idle, i)
}

func newInterpreter() *interpreter {
	i := &interpreter{state: lua.NewState(lua.Options{SkipOpenLibs: true}), known: map[string]*lua.LFunction{}}
	for name, open := range map[string]lua.LGFunction{
		lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable, lua.StringLibName: lua.OpenString, lua.MathLibName: lua.OpenMath,
	} {
		i.state.Push(i.state.NewFunction(open))
		i.state.Push(lua.LString(name))
		i.state.Call(1, 0)
	}
	redis := i.state.NewTable()
	redis.RawSetString("call", i.state.NewFunction(func(l *lua.LState) int { return i.call(l, true) }))
	redis.RawSetString("pcall", i.state.NewFunction(func(l *lua.LState) int { return i.call(l, false) }))
	i.state.SetGlobal("redis", redis)
	return i
}

// eval runs a script's text and writes its reply to c, and tells note of it: the first key, and the reply in words.
func (i *interpreter) eval(c *server.Peer, text string, args []string, note func(key, reply string)) {
	l := i.state
	f := i.known[text]
	if f == nil {
		var err error
		if f, err = l.LoadString(text); err != nil {
			c.WriteError("ERR Error compiling script: " + err.Error())
			return
		}
		i.known[text] = f
	}
	n, err := strconv.Atoi(args[0])
	if err != nil || n < 0 || n > len(args)-1 {
		c.WriteError("ERR Number of keys can't be greater than number of args")
		return
	}
	l.SetGlobal("KEYS", i.list(args[1:1+n]))
	l.SetGlobal("ARGV", i.list(args[1+n:]))
	l.SetTop(0)
	l.Push(f)
	if err := l.PCall(0, 1, nil); err != nil {
		c.WriteError("ERR " + strings.SplitN(err.Error(), "\n", 2)[0])
		return
	}
	reply := l.Get(1)
	answer(c, reply)
	l.SetTop(0)
	if n > 0 {
		note(args[1], words(reply))
	}
}

// words shows a reply's numbers, and of its texts only that they are there.
func words(v lua.LValue) string {
	switch v := v.(type) {
	case lua.LNumber:
		return v.String()
	case lua.LString:
		if len(v) <= 20 {
			return string(v)
		}
		return fmt.Sprintf("(%d bytes)", len(v))
	case *lua.LTable:
		var all []string
		for k := 1; v.RawGetInt(k) != lua.LNil; k++ {
			all = append(all, words(v.RawGetInt(k)))
		}
		return "{" + strings.Join(all, " ") + "}"
	}
	return "-"
}

func (i *interpreter) list(of []string) *lua.LTable {
	t := i.state.CreateTable(len(of), 0)
	for _, s := range of {
		t.Append(lua.LString(s))
	}
	return t
}

// call is redis.call, or redis.pcall, which returns errors.
func (i *interpreter) call(l *lua.LState, raise bool) int {
	args := make([]string, l.GetTop())
	for n := range args {
		args[n] = l.Get(n + 1).String()
	}
	i.reply.Reset()
	i.redis.Dispatch(i.peer, args)
	i.peer.Flush()
	reply, err := server.ParseReply(bufio.NewReader(&i.reply))
	if err != nil {
		if raise {
			l.RaiseError("%s", err.Error())
		}
		t := l.NewTable()
		t.RawSetString("err", lua.LString(err.Error()))
		l.Push(t)
		return 1
	}
	l.Push(taken(l, reply))
	return 1
}

// taken turns a command's reply into what a script sees.
func taken(l *lua.LState, reply any) lua.LValue {
	switch r := reply.(type) {
	case nil:
		return lua.LFalse
	case int:
		return lua.LNumber(r)
	case int64:
		return lua.LNumber(r)
	case string:
		return lua.LString(r)
	case []byte:
		return lua.LString(r)
	case server.Simple:
		t := l.NewTable()
		t.RawSetString("ok", lua.LString(r))
		return t
	case []any:
		t := l.CreateTable(len(r), 0)
		for _, e := range r {
			t.Append(taken(l, e))
		}
		return t
	}
	l.RaiseError("a reply of type %T", reply)
	return lua.LNil
}

// answer writes what a script returned.
func answer(c *server.Peer, v lua.LValue) {
	switch v := v.(type) {
	case lua.LNumber:
		c.WriteInt(int(v))
	case lua.LString:
		c.WriteBulk(string(v))
	case lua.LBool:
		if v {
			c.WriteInt(1)
		} else {
			c.WriteNull()
		}
	case *lua.LTable:
		n := 0
		for v.RawGetInt(n+1) != lua.LNil {
			n++
		}
		c.WriteLen(n)
		for k := range n {
			answer(c, v.RawGetInt(k+1))
		}
	default:
		c.WriteNull()
	}
}

// sha is the name under which Redis knows a script.
func sha(text string) string {
	sum := sha1.Sum([]byte(text)) //nolint:gosec // as above
	return hex.EncodeToString(sum[:])
}
