package layers

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/tiercache/tiercache/internal/rediskey"
)

// SpaceOptions describe one cache's part of a Redis. Zero durations mean the default in brackets, negative ones are errors.
type SpaceOptions struct {
	Name        string        // required, at most 200 bytes; a second open Space of this name on one Redis is an error
	Window      time.Duration // the delete window (1 s)
	LeaseTime   time.Duration // how long a lease stands after its grant or its last renewal (3 s)
	PendTime    time.Duration // how long a pending write stands after its last renewal (30 s)
	BackoffBase time.Duration // how long a key rests after the second failure in a row; doubled by each one after it (100 ms)
	BackoffMax  time.Duration // the longest rest (1 s)
	Events      Events
}

var errSpaceClosed = errors.New("layers: the space is closed")

// generationTime is how long Redis keeps a generation that nobody asks for; every heartbeat renews it. Chosen; not tuned: it must be
// longer than any value lives without a process that has its name open.
const generationTime = 30 * 24 * time.Hour

// renewalSlack is how many milliseconds the data may be older than the last renewal without counting as older: a script takes time between
// its look at the clock and its look at the expiry. A heartbeat, which is as exact as this can be. Chosen; not tuned.
const renewalSlack = 1000

// Space is one cache's part of a Redis: its keys, its leases, its generation. All methods may be called concurrently.
//
// A method that sends scripts makes one round trip per master, however many keys it is given, and waits at most WriteTimeout of the Redis.
// Its errors are per key; an error of the connection leaves unknown what became of the script. All may be sent again.
type Space struct {
	r       *Redis
	o       SpaceOptions
	name    string // escaped, as it stands in keys
	before  string // a value's key up to and with the opening brace
	channel string // the bus of this name
	genKey  string
	ear     *ear // the bus's part, set by join

	generation atomic.Uint64 // 0: not yet known; moved by adopt only
	renewed    atomic.Int64  // when this process renewed it last, server ms; data that remembers an earlier renewal is older
	asking     singleflight.Group

	copies   copies
	fedClock serverClock
}

// Open returns the space of a name. It waits for nobody: the generation is asked for when it is first needed.
func (r *Redis) Open(o SpaceOptions) (*Space, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	name := rediskey.Escape(o.Name)
	front := r.prefix + ":" + name
	s := &Space{r: r, o: o, name: name, before: front + ":{", channel: front + ":bus", genKey: front + ":gen"}
	s.copies.which = rand.Uint32() //nolint:gosec // spreads load
	if err := r.bus.join(s); err != nil {
		return nil, err
	}
	return s, nil
}

// check sets the defaults and reports every mistake.
func (o *SpaceOptions) check() error {
	var errs []error
	if o.Name == "" {
		errs = append(errs, errors.New("layers: a space needs a name"))
	}
	if rediskey.Long(o.Name) {
		errs = append(errs, fmt.Errorf("layers: a name of %d bytes, at most %d", len(o.Name), longKey))
	}
	for _, d := range []struct {
		name  string
		value *time.Duration
		usual time.Duration
	}{
		{"Window", &o.Window, time.Second},
		{"LeaseTime", &o.LeaseTime, 3 * time.Second},
		{"PendTime", &o.PendTime, 30 * time.Second},
		{"BackoffBase", &o.BackoffBase, 100 * time.Millisecond},
		{"BackoffMax", &o.BackoffMax, time.Second},
	} {
		if *d.value < 0 {
			errs = append(errs, fmt.Errorf("layers: negative %s", d.name))
		}
		if *d.value == 0 {
			*d.value = d.usual
		}
	}
	return errors.Join(errs...)
}

// Close ends the events of s and frees its name. It touches nothing in Redis.
func (s *Space) Close() { s.r.bus.leave(s) }

// Name returns the name that s was opened with.
func (s *Space) Name() string { return s.o.Name }

// Reachable reports whether the master of id's slot is not known to be unreachable. It is cheap and never waits.
func (s *Space) Reachable(id string) bool {
	if s.r.cluster == nil { // one master, whatever the key
		return s.r.reachable("")
	}
	key, err := s.valueKey(id)
	return err == nil && s.r.reachable(key)
}

// Standing is Reachable, and whether the key's turn to be read from Redis has come. A master that was unreachable is asked for everything
// else at once, but for reads key by key: for none in the first second or so after it was lost (twice as long if that happened before, up to
// 30 s), then for a share of the keys that grows from a tenth to all within 5 s. While nothing was wrong it costs what Reachable does.
func (s *Space) Standing(id string) (reachable, turn bool) {
	key := "" // one master, whatever the key
	if s.r.cluster != nil {
		var err error
		if key, err = s.valueKey(id); err != nil {
			return false, false
		}
	}
	m, p := s.r.standing(key)
	if m == nil || p == away {
		return p != away, p != away
	}
	return true, m.turn(p, id)
}

// known returns the generation, asking Redis for it once if this process does not know it yet: nothing from Redis may be answered
// before, since it could be of before a Clear.
func (s *Space) known(ctx context.Context) (uint64, error) {
	if g := s.generation.Load(); g != 0 {
		return g, nil
	}
	return s.ask(ctx)
}

// ask runs the generation script, shared by all who ask at the same time, and adopts its answer. A caller leaves at the end of its ctx.
func (s *Space) ask(ctx context.Context) (uint64, error) {
	shared := context.WithoutCancel(ctx) // eval has its own budget
	ch := s.asking.DoChan("", func() (any, error) { return nil, s.agree(shared, false) })
	select {
	case r := <-ch:
		return s.generation.Load(), r.Err
	case <-ctx.Done():
		return 0, endOf(ctx)
	}
}

// confirm returns the generation after a value of the greater generation g was met: g if Redis confirms it.
func (s *Space) confirm(ctx context.Context, g uint64) (known uint64, err error) {
	for range 2 { // the first answer may be of a call that was under way before g came to be
		if known, err = s.ask(ctx); err != nil || known >= g {
			break
		}
	}
	return known, err
}

// agree runs the generation script: the greater of what Redis and this process know stands, one more if move is set.
func (s *Space) agree(ctx context.Context, move bool) error {
	flag, event := 0, ""
	if move {
		flag, event = 1, s.r.bus.event(s, eventCleared, "") // the script appends the generation
	}
	known, renewed := s.generation.Load(), max(s.renewed.Load()-renewalSlack, 0)
	call := &scriptCall{
		script: generationScript, keys: []string{s.genKey},
		args: []any{known, flag, generationTime.Milliseconds(), s.channel, event, s.r.bus.event(s, eventLost, ""), renewed},
	}
	s.r.eval(ctx, call)
	a, err := call.read()
	if err != nil {
		return err
	}
	g := a.number(2)
	if g <= 0 || g >= exact {
		return fmt.Errorf("layers: %q is no generation", fmt.Sprint(a.fields...))
	}
	stored, back := a.number(3), time.Duration(0)
	if was := a.number(4); was > 0 && renewed > 0 {
		back = span(renewed - was)
	}
	if uint64(stored) < known || back > 0 { //nolint:gosec // no generation is negative
		s.r.log.Warn("tiercache: failover: Redis has lost the generation, or comes with older data; recent invalidations are repeated",
			"name", s.o.Name, "older", max(back, 0))
		s.ear.lose(max(back, 0)) // whoever asks next finds all in its place: the script tells the others
	}
	if known != 0 || uint64(g) != uint64(stored) { //nolint:gosec // as above
		s.renewed.Store(a.now)
	}
	s.ear.do(func() { s.adopt(uint64(g), move, a.local(g/1000)) })
	if s.generation.Load() == 0 {
		return errSpaceClosed // the ear does nothing any more
	}
	return nil
}

// adopt makes g the generation unless a greater one is known, and reports that everything kept so far is of an older one. cleared says
// that somebody moved the generation; a process that learns its first one otherwise has kept nothing of an older one. A generation is the
// moment at which it began: since, by this process's clock.
//
// The ear calls it, one event at a time: who comes second and finds the generation moved finds Cleared done too.
//
// The generation moves before Cleared drops what is kept: 1 a reader takes a mark; 2 it reads a value from Redis and judges it by the
// generation; 3 it puts it under the mark. Were Cleared first, a mark taken after it could stand for a value judged by the old generation.
func (s *Space) adopt(g uint64, cleared bool, since time.Time) {
	old := s.generation.Load()
	if g <= old || g >= exact {
		return
	}
	s.generation.Store(g)
	if s.o.Events.Begun != nil {
		s.o.Events.Begun(since)
	}
	if (old != 0 || cleared) && s.o.Events.Cleared != nil {
		s.o.Events.Cleared()
	}
}

// Move begins a new generation: every value of this name is a miss from now on, here at once (Events.Cleared has run when Move returns
// nil), elsewhere when the event, a newer value or the next heartbeat comes. One round trip; nothing is deleted.
func (s *Space) Move(ctx context.Context) error { return s.agree(ctx, true) }

// beat renews the generation's expiry, puts an evicted or rolled-back one right, and adopts a newer one. The bus calls it each heartbeat.
func (s *Space) beat(ctx context.Context) error { return s.agree(ctx, false) }

// each sends one call for every id whose key is short enough, all in one pipeline per master, and gives the answers to take in order.
func (s *Space) each(ctx context.Context, ids []string, build func(i int, key string) *scriptCall, take func(i int, a scriptReply, err error)) {
	calls := make([]*scriptCall, 0, len(ids))
	errs := make([]error, len(ids))
	for i, id := range ids {
		key, err := s.valueKey(id)
		if err != nil {
			errs[i] = err
			continue
		}
		calls = append(calls, build(i, key))
	}
	if len(calls) > 0 {
		s.r.eval(ctx, calls...)
	}
	for i := range ids {
		if errs[i] != nil {
			take(i, scriptReply{}, errs[i])
			continue
		}
		a, err := calls[0].read()
		calls = calls[1:]
		take(i, a, err)
	}
}
