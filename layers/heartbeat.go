package layers

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiercache/tiercache/internal/borrowed"
)

const (
	// beatEvery is how many heartbeats lie between two beats of a channel: 5 s. Chosen; not tuned.
	beatEvery = 5
	// maxMissed is how many probes of one master may stay away in a row: two heartbeats (P5).
	maxMissed = 2
)

var errNoMaster = errors.New("layers: no master is known")

// pulse is what the probes through one master have shown. Guarded by the bus's mu.
type pulse struct {
	round   uint64 // the newest in which the master was there
	sent    uint64 // the newest probe
	taken   bool   // the master took it
	back    uint64 // the newest that came back
	checked uint64 // the last heartbeat's probe, which shall be back by the next one; 0: it need not
	missed  int    // such probes that were not, in a row
	need    uint64 // must be back before the bus is sound; 0: nothing must
	who     recognition
}

// speak is the speaker. It runs until ctx ends.
func (b *bus) speak(ctx context.Context) {
	defer close(b.done[1])
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	watch := time.NewTimer(heartbeat) // for the numbers that are awaited
	defer watch.Stop()
	var proved uint64 // the trust for which a round was begun at once, without waiting for the next heartbeat
	for beat := 0; ; {
		now := time.Now()
		if m := b.suspects(); m != nil {
			b.lose("the master is reachable again, and INFO does not tell whether it is the same", m)
		}
		b.tune()
		b.tellBreaker()
		b.subscribe(ctx, now)
		if due := b.overdue(now); due.IsZero() {
			watch.Stop()
		} else {
			watch.Reset(time.Until(due))
		}
		select {
		case <-ctx.Done():
			return
		case <-watch.C:
		case <-b.wake:
			if trust, wanted := b.proofWanted(); wanted && trust != proved {
				proved = trust
				_, _ = b.probe(ctx, false)
			}
		case <-tick.C:
			b.beat(ctx, beat)
			beat++
		}
	}
}

// tellBreaker tells every ear of the breakers' state if it is another than it was told last.
func (b *bus) tellBreaker() {
	state := b.r.breakerState()
	for _, e := range b.open() {
		if e.breaker != state && e.events.Breaker != nil {
			e.do(func() { e.events.Breaker(state.String()) })
		}
		e.breaker = state
	}
}

// overdue has every ear look for missing numbers, and returns when the next look is due; zero: none is.
func (b *bus) overdue(now time.Time) (next time.Time) {
	for _, e := range b.open() {
		due := e.overdue(now)
		if !due.IsZero() && (next.IsZero() || due.Before(next)) {
			next = due
		}
	}
	return next
}

// beat is one heartbeat: a probe through every master; now and then each channel's newest number; then each space's own.
func (b *bus) beat(ctx context.Context, count int) {
	masters, all := b.probe(ctx, true)
	if len(masters) == 0 {
		return
	}
	ears := b.open()
	if count%beatEvery == 0 {
		// By another master each time, so that one whose events do not get through is shown by the next beat.
		slices.SortFunc(masters, func(x, y *master) int { return cmp.Compare(x.id, y.id) })
		b.number(ctx, masters[count/beatEvery%len(masters)], ears)
	}
	for _, e := range ears {
		e.beat(ctx, all)
	}
}

// number publishes the newest number of every ear's channel, so that even the loss of the last event is noticed.
func (b *bus) number(ctx context.Context, m *master, ears []*ear) {
	cmds := make([]redis.Cmder, 0, len(ears))
	for _, e := range ears {
		ev := event{kind: eventBeat, origin: b.origin, number: e.last.Load()}
		cmds = append(cmds, redis.NewIntCmd(ctx, "publish", e.channel, ev.String()))
	}
	if len(cmds) > 0 {
		_ = m.do(ctx, cmds...) // lost: the next one says more
	}
}

// beat runs the space's heartbeat; steady says that every master answered, as the server that it was.
func (e *ear) beat(ctx context.Context, steady bool) {
	e.beating.Lock()
	defer e.beating.Unlock()
	e.mu.Lock()
	left := e.left
	e.mu.Unlock()
	if left {
		return
	}
	if err := e.space.beat(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, ErrUnreachable) {
		e.fail("generation", err)
	}
	e.do(e.events.Tick)
	if steady {
		e.do(e.events.Steady)
	}
}

// proofWanted reports whether a round of probes could now show that the bus is sound, and for which trust.
func (b *bus) proofWanted() (trust uint64, wanted bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.trust, !b.sound && !b.proving && b.link != nil && b.link.confirmed(b.private)
}

// probe publishes a probe to the private channel through every master, unreachable ones too, and returns the masters that
// answered, and whether those are all. In a heartbeat the last heartbeat's probes are looked for.
func (b *bus) probe(ctx context.Context, beat bool) (answered []*master, all bool) {
	b.mu.Lock()
	b.round++
	round, trust := b.round, b.trust
	ready := b.link != nil && b.link.confirmed(b.private)
	b.mu.Unlock()
	var mu sync.Mutex
	masters := 0
	b.r.eachMaster(ctx, func(ctx context.Context, m *master) {
		if b.isNew(m) {
			b.lose("the cluster has a master that was not there before", m)
		}
		number := b.sending(m.id, round, beat)
		cmd := redis.NewIntCmd(ctx, "publish", b.private, strconv.FormatUint(number, 10)+"|"+m.id)
		err := b.ask(ctx, m, cmd)
		answers := outcomeOf(err) == wasAnswered
		if answers {
			err = cmd.Err() // not that of another command
		}
		b.sent(m.id, number, ready && beat, err)
		mu.Lock()
		defer mu.Unlock()
		masters++
		if answers {
			answered = append(answered, m)
		}
	})
	b.conclude(round, trust, ready)
	return answered, len(answered) == masters
}

// sending returns the number of the next probe through a master. In a heartbeat it first looks for the last heartbeat's.
func (b *bus) sending(id string, round uint64, beat bool) uint64 {
	b.mu.Lock()
	b.probes++
	number := b.probes
	p := b.pulses[id]
	if p == nil {
		p = &pulse{}
		b.pulses[id] = p
	}
	if beat {
		p.missed = p.lookFor()
	}
	dumb := p.missed >= maxMissed && b.link != nil
	if dumb {
		// Replaced, though data still arrives on it: in Cluster the next one is made to another master, which may hear this one.
		b.link.cut()
		b.doubtLocked()
		p.missed, p.checked = 0, 0
	}
	p.round, p.sent, p.taken = round, number, false
	b.mu.Unlock()
	if dumb {
		b.tune()
	}
	return number
}

// lookFor returns how many heartbeats' probes have stayed away in a row by now.
func (p *pulse) lookFor() int {
	if p.checked == 0 || p.back >= p.checked {
		return 0
	}
	return p.missed + 1
}

// sent takes in what became of the sending of a probe. One that the master did not take, or may not have, need not come back.
func (b *bus) sent(id string, number uint64, check bool, err error) {
	b.mu.Lock()
	p := b.pulses[id]
	if p != nil && p.sent == number {
		p.taken = err == nil
		p.checked = 0
		if check && p.taken {
			p.checked = number
		}
	}
	first := redis.IsPermissionError(err) && !b.refused[probeRefused]
	if first {
		b.refused[probeRefused] = true
	}
	if err == nil {
		delete(b.refused, probeRefused)
	}
	b.mu.Unlock()
	if first {
		b.r.log.Error("tiercache: Redis refuses the bus probe, memory is never trusted", "channel", b.private, "error", err)
		b.report(err)
	}
}

// probeRefused stands for the probes among the channels that were refused: no channel has this name.
const probeRefused = ""

// conclude ends a round. What the masters took in it must come back before the bus is sound, if it began under the present trust with the
// private channel's subscription confirmed.
func (b *bus) conclude(round, trust uint64, ready bool) {
	b.mu.Lock()
	b.met = b.met || len(b.pulses) > 0
	for id, p := range b.pulses {
		if p.round != round { // the master is gone
			delete(b.pulses, id)
		}
	}
	if ready && b.trust == trust && !b.sound {
		b.proving = true
		for _, p := range b.pulses {
			p.need = 0
			if p.taken {
				p.need = p.sent
			}
		}
	}
	sound := b.proveLocked()
	b.mu.Unlock()
	b.proved(sound)
}

// returned takes in a probe that came back.
func (b *bus) returned(payload string) {
	number, id, ok := cutNumber(payload)
	if !ok {
		return
	}
	b.mu.Lock()
	sound := false
	if p := b.pulses[id]; p != nil && number <= b.probes {
		p.back = max(p.back, number)
		sound = b.proveLocked()
	}
	b.mu.Unlock()
	b.proved(sound)
}

// proveLocked makes the bus sound if all that must come back has. It reports whether it became so.
func (b *bus) proveLocked() bool {
	if b.sound || !b.proving || b.link == nil {
		return false
	}
	some := false
	for _, p := range b.pulses {
		if p.back < p.need {
			return false
		}
		some = some || p.need > 0
	}
	b.sound = some
	return some
}

// proved lets the ears hear.
func (b *bus) proved(sound bool) {
	if !sound {
		return
	}
	b.mu.Lock()
	back := b.said
	b.said = false
	b.mu.Unlock()
	if back {
		b.r.log.Info("tiercache: the bus is back, memory is trusted again")
	}
	b.tune()
}

// master returns the client of one master, by turns; nil if the transport speaks through a client of an unknown kind.
func (b *bus) master(ctx context.Context, turn int) (*redis.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, borrowed.DialTimeout)
	defer cancel()
	var mu sync.Mutex
	var masters []*master
	b.r.eachMaster(ctx, func(_ context.Context, m *master) {
		mu.Lock()
		defer mu.Unlock()
		masters = append(masters, m)
	})
	if len(masters) == 0 {
		return nil, errNoMaster
	}
	slices.SortFunc(masters, func(x, y *master) int { return cmp.Compare(x.id, y.id) })
	n := masters[turn%len(masters)].node.Load()
	if n == nil {
		return nil, nil
	}
	return n.client, nil
}
