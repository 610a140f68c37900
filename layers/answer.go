package layers

import (
	_ "embed"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiercache/tiercache/internal/borrowed"
)

//go:embed lua/get.lua
var getScript string

// answer is what came back for a batch.
type answer struct {
	sent  time.Time
	reqs  []*request // the batch's, in the order in which they were asked for
	parts []part     // of one slot each; not of a batch that goes through scripts
	first [1]part
	clock *redis.TimeCmd
	lone  []*redis.SliceCmd // one a request, of a batch that goes through scripts
}

// part is an MGET: of the answer's requests from up to to.
type part struct {
	cmd      *redis.StringSliceCmd
	from, to int
}

var timeArgs = []any{"time"}

// exec sends b's pipeline. The error is the pipeline's first, be it of one command only.
func (m *master) exec(b *batch, a *answer) error {
	p := m.pipeline()
	if m.node.Load() == nil {
		a.lone = make([]*redis.SliceCmd, len(b.reqs))
		for i, q := range b.reqs {
			a.lone[i] = redis.NewSliceCmd(b, "eval", getScript, 1, &q.key)
			_ = p.Process(b, borrowed.Once{Cmder: a.lone[i]}) // queues only
		}
	} else {
		a.split(b, m.r.cluster != nil)
		for _, part := range a.parts {
			_ = p.Process(b, borrowed.Once{Cmder: part.cmd})
		}
		a.clock = redis.NewTimeCmd(b, timeArgs...)
		_ = p.Process(b, a.clock)
	}
	m.r.counts.trips.Add(1)
	m.r.counts.commands.Add(uint64(p.Len()))
	m.r.counts.gets.Add(uint64(len(b.reqs)))
	a.sent = time.Now()
	_, err := p.Exec(b)
	return err
}

// split makes an MGET of the requests of each slot; outside of a cluster, one of all.
func (a *answer) split(b *batch, bySlot bool) {
	a.parts, a.reqs = a.first[:0], b.reqs
	if bySlot && len(b.reqs) > 1 {
		a.reqs = slices.Clone(b.reqs) // whoever ends b may be going through its own
		slices.SortFunc(a.reqs, func(x, y *request) int { return int(x.slot) - int(y.slot) })
	}
	for from := 0; from < len(a.reqs); {
		to := len(a.reqs)
		if bySlot {
			to = from + 1
			for to < len(a.reqs) && a.reqs[to].slot == a.reqs[from].slot {
				to++
			}
		}
		args := make([]any, 1, 1+to-from)
		args[0] = "mget"
		for _, q := range a.reqs[from:to] {
			args = append(args, &q.key) // a pointer needs no boxing
		}
		a.parts = append(a.parts, part{redis.NewStringSliceCmd(b, args...), from, to})
		from = to
	}
}

// fill writes the answers into the requests; true: some are away.
func (b *batch) fill(a *answer) (away bool) {
	m := b.m
	for i, cmd := range a.lone {
		q := b.reqs[i]
		q.reply = &reply{sent: a.sent, keep: !m.moved}
		q.raw, q.now, q.err = parseLone(cmd)
		q.err = m.explain(q.err)
	}
	if a.lone != nil {
		return false
	}
	clock, clockErr := a.clock.Result()
	now := clock.UnixMilli()
	for _, p := range a.parts {
		values, err := p.cmd.Result()
		if err == nil {
			err = clockErr
		}
		moved := err != nil && m.r.cluster != nil && isMoved(err)
		if moved {
			m.r.counts.redirected.Add(uint64(p.to - p.from))
		}
		away = away || moved
		err = m.explain(err)
		if err == nil && len(values) != p.to-p.from {
			err = errors.New("layers: redis answered another number of values than it was asked for")
		}
		all := &reply{err: err, now: now, sent: a.sent, keep: !m.moved, away: moved}
		for i, q := range a.reqs[p.from:p.to] {
			q.reply = all
			if err == nil {
				q.raw = values[i]
			}
		}
	}
	return away
}

// parseLone reads the reply of lua/get.lua.
func parseLone(cmd *redis.SliceCmd) (raw string, now int64, err error) {
	reply, err := cmd.Result()
	if err != nil {
		return "", 0, err
	}
	var text [3]string
	for i := range min(len(reply), len(text)) {
		text[i], _ = reply[i].(string) // a nil stays ""
	}
	seconds, err1 := strconv.ParseInt(text[0], 10, 64)
	micros, err2 := strconv.ParseInt(text[1], 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		return "", 0, err
	}
	return text[2], seconds*1000 + micros/1000, nil
}

// isMoved reports whether the error says that the slot, or one key of several, is elsewhere.
func isMoved(err error) bool {
	text := err.Error()
	return strings.HasPrefix(text, "MOVED ") || strings.HasPrefix(text, "ASK ") || strings.HasPrefix(text, "TRYAGAIN")
}
