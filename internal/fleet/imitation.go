package fleet

import (
	"fmt"
	"net"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/alicebob/miniredis/v2/server"
)

// imitation is the Redis of the virtual stage: miniredis, whose clock is the bubble's, and which runs our own scripts. Commands are carried
// out one at a time, and a script is one command.
type imitation struct {
	mini *miniredis.Miniredis
	lua  *interpreter

	turn    sync.Mutex
	passing atomic.Pointer[server.Peer] // whose command is being carried out
	scripts map[string]string           // by sha; guarded by turn
	names   map[string]string           // of scripts, by text; guarded by turn
	note    func(key, what string)      // is told of every script that ran

	// Scripts run on one goroutine, whose stack has grown once: it would on each connection's.
	work    chan func()
	done    chan struct{}
	refuses string // the error that every command gets; guarded by turn
}

func newImitation() (*imitation, error) {
	m := miniredis.NewMiniRedis()
	m.ClockTTL(true)
	first, err := m.Dial() // starts it without a socket
	if err != nil {
		return nil, fmt.Errorf("fleet: start the imitation: %w", err)
	}
	i := &imitation{mini: m, lua: takeInterpreter(m.Server()), scripts: map[string]string{}, names: map[string]string{}, note: func(string, string) {}, work: make(chan func()), done: make(chan struct{})}
	go func() {
		for f := range i.work {
			f()
			i.done <- struct{}{}
		}
	}()
	m.Server().SetPreHook(i.before)
	return i, first.Close()
}

func (i *imitation) serve(c net.Conn) { i.mini.Server().ServeConn(c) }

// before runs before every command, and has done it all when it returns true. What it lets pass comes back to it once more.
func (i *imitation) before(c *server.Peer, name string, args ...string) bool {
	if c == i.passing.Load() || c == i.lua.peer {
		return false
	}
	i.turn.Lock()
	defer i.turn.Unlock()
	switch {
	case i.refuses != "" && name != "HELLO" && name != "CLIENT" && !strings.HasSuffix(name, "SUBSCRIBE"):
		c.WriteError(i.refuses)
	case name == "EVAL" && len(args) > 1:
		i.scripts[sha(args[0])] = args[0]
		i.eval(c, args[0], args[1:])
	case name == "EVALSHA" && len(args) > 1:
		text, ok := i.scripts[args[0]]
		if !ok {
			c.WriteError("NOSCRIPT No matching script. Please use EVAL.")
			break
		}
		i.eval(c, text, args[1:])
	default:
		i.passing.Store(c)
		i.mini.Server().Dispatch(c, append([]string{name}, args...))
		i.passing.Store(nil)
	}
	return true
}

// scriptName finds the name of one of the library's scripts in its text.
var scriptName = regexp.MustCompile(`\n-- (\w+): `)

// eval runs a script and notes it.
func (i *imitation) eval(c *server.Peer, text string, args []string) {
	i.work <- func() { i.lua.eval(c, text, args, i.noteOf(text, args)) }
	<-i.done
}

// noteOf returns what notes that a script ran.
func (i *imitation) noteOf(text string, args []string) func(key, reply string) {
	return func(key, reply string) {
		name := i.names[text]
		if found := scriptName.FindStringSubmatch(text); name == "" && found != nil {
			name = found[1]
			i.names[text] = name
		}
		if name == "invalidate" {
			name += " " + args[3] // the mode
		}
		i.note(key, name+" "+reply)
	}
}

// do changes the data by the tester's hand, between two commands.
func (i *imitation) do(f func(m *miniredis.Miniredis)) {
	i.turn.Lock()
	defer i.turn.Unlock()
	f(i.mini)
}

// flush empties Redis, scripts included.
func (i *imitation) flush() {
	i.do(func(m *miniredis.Miniredis) {
		m.FlushAll()
		clear(i.scripts)
	})
}

// refuse answers every command with an error from now on; empty: no more.
func (i *imitation) refuse(text string) { i.do(func(*miniredis.Miniredis) { i.refuses = text }) }

// each calls f for every string of Redis that begins with prefix; left is what is left of its life, 0: it has no end.
func (i *imitation) each(prefix string, f func(key, raw string, left time.Duration)) {
	i.do(func(m *miniredis.Miniredis) {
		for _, key := range m.Keys() {
			if !strings.HasPrefix(key, prefix) {
				continue
			}
			if raw, err := m.Get(key); err == nil {
				f(key, raw, m.TTL(key))
			}
		}
	})
}

func (i *imitation) close() {
	i.mini.Close()
	close(i.work)
	i.lua.giveBack()
}
