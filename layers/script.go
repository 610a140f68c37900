package layers

import (
	_ "embed"
	"fmt"
	"time"

	"github.com/tiercache/tiercache/internal/borrowed"
	"github.com/tiercache/tiercache/internal/broken"
)

// The scripts. Each is lua/guard.lua, which knows the forms of guard and envelope, followed by its own file, where it touches these. Every script names its caller's
// token and may be sent again: what a repeat does is in its header.
var (
	//go:embed lua/guard.lua
	guardSource string
	//go:embed lua/acquire.lua
	acquireSource string
	//go:embed lua/fill.lua
	fillSource string
	//go:embed lua/release.lua
	releaseSource string
	//go:embed lua/renew.lua
	renewSource string
	//go:embed lua/invalidate.lua
	invalidateSource string
	//go:embed lua/generation.lua
	generationSource string
	//go:embed lua/hot.lua
	hotSource string
	//go:embed lua/copy.lua
	copySource string
	//go:embed lua/filterplace.lua
	filterPlaceSource string

	acquireScript    = borrowed.NewScript("acquire", broken.Script("acquire", guardSource+acquireSource))
	fillScript       = borrowed.NewScript("fill", broken.Script("fill", guardSource+fillSource))
	releaseScript    = borrowed.NewScript("release", guardSource+releaseSource)
	renewScript      = borrowed.NewScript("renew", guardSource+renewSource)
	invalidateScript = borrowed.NewScript("invalidate", broken.Script("invalidate", guardSource+invalidateSource))
	generationScript = borrowed.NewScript("generation", guardSource+generationSource)
	hotScript        = borrowed.NewScript("hot", guardSource+hotSource)
	copyScript       = borrowed.NewScript("copy", guardSource+copySource)

	filterPlaceScript = borrowed.NewScript("filterplace", filterPlaceSource) // knows neither guard nor envelope
)

// scriptReply is a script's reply: a code, the server's time, and what the script's header names after them. Its zero value is an answer of
// nothing but zeros.
type scriptReply struct {
	code   int64
	now    int64 // server ms
	fields []any
	sent   time.Time
}

// read returns the answer of c, or why there is none. An error of the connection leaves unknown what became of the script.
func (c *scriptCall) read() (scriptReply, error) {
	if c.err != nil {
		return scriptReply{}, c.err
	}
	fields, _ := c.reply.([]any)
	if len(fields) < 2 {
		return scriptReply{}, fmt.Errorf("layers: the script %s answered %T of %d fields, want at least 2", c.script.Name, c.reply, len(fields))
	}
	a := scriptReply{fields: fields, sent: c.sent}
	a.code, a.now = a.number(0), a.number(1)
	return a, nil
}

// number returns the field i, 0 if there is none.
func (a *scriptReply) number(i int) int64 {
	if i >= len(a.fields) {
		return 0
	}
	n, _ := a.fields[i].(int64)
	return n
}

// text returns the field i, "" if there is none.
func (a *scriptReply) text(i int) string {
	if i >= len(a.fields) {
		return ""
	}
	s, _ := a.fields[i].(string)
	return s
}

// until returns how long after the answer the server's moment end comes; negative if it has passed.
func (a *scriptReply) until(end int64) time.Duration { return span(end - a.now) }

// local returns the moment of this process's clock by which the server's moment end has not passed yet: see localTime.
func (a *scriptReply) local(end int64) time.Time { return localTime(a.sent, a.now, end) }

// localTime translates the server's moment end into this process's clock, given that a request sent at the moment sent was answered with
// the server's time now. The way there counts as passed, so the local moment is the earlier one, whatever the network did.
func localTime(sent time.Time, now, end int64) time.Time { return sent.Add(span(end - now)) }

// farthest bounds the lives that an envelope may claim, so that no arithmetic on them overflows. Chosen; not tuned.
const farthest = 100 * 365 * 24 * time.Hour

// span is ms milliseconds as a duration, within ±farthest.
func span(ms int64) time.Duration {
	limit := farthest.Milliseconds()
	return time.Duration(min(max(ms, -limit), limit)) * time.Millisecond
}

// millis is d as a script takes it: whole milliseconds, and a positive life is at least one.
func millis(d time.Duration) int64 {
	if d <= 0 {
		return 0
	}
	return max(d.Milliseconds(), 1)
}
