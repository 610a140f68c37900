package layers

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiercache/tiercache/internal/borrowed"
)

const (
	// heartbeat is how often each master is probed. Chosen; not tuned.
	heartbeat = time.Second
	// silence is how long nothing may arrive on the connection, on which this process's own probes arrive each heartbeat.
	silence = 2 * heartbeat
	// redialFirst and redialLast are the shortest and longest pause before another connection is tried; it doubles. The first attempt
	// after a connection that worked is made at once. Chosen; not tuned.
	redialFirst = 50 * time.Millisecond
	redialLast  = time.Second
	// refusedPause is how long a refused subscription is left alone: it takes an administrator to change that. Chosen; not tuned.
	refusedPause = 10 * time.Second
)

var errReply = errors.New("layers: unexpected reply on the bus's connection")

// link is one connection of the bus. Its fields but ps and cut are guarded by the bus's mu.
type link struct {
	ps       *redis.PubSub
	cut      context.CancelFunc // ends it: its reader gets an error at once
	owed     []*ask             // commands whose replies have not come, in the order of both
	channels map[string]*ask    // the newest command of each channel that is, or shall be, subscribed
}

// ask is one SUBSCRIBE or UNSUBSCRIBE of one channel.
type ask struct {
	channel string
	leave   bool
	at      time.Time
	state   askState
}

type askState uint8

const (
	askOwed askState = iota
	askGranted
	askDenied
)

func (l *link) confirmed(channel string) bool {
	a := l.channels[channel]
	return a != nil && a.state == askGranted
}

// listen is the listener: it keeps one connection after the other until ctx ends.
func (b *bus) listen(ctx context.Context) {
	defer close(b.done[0])
	pause := time.Duration(0)
	for turn := rand.IntN(1 << 16); ctx.Err() == nil; turn++ { // processes spread over the masters
		proved, err := b.hold(ctx, turn)
		b.lost(ctx, err)
		var no *refusal
		switch {
		case errors.As(err, &no):
			pause = refusedPause
		case proved:
			pause = 0
		default:
			pause = min(max(2*pause, redialFirst), redialLast)
		}
		wait := time.NewTimer(time.Duration(float64(pause) * (1 - rand.Float64()/4)))
		select {
		case <-ctx.Done():
		case <-wait.C:
		}
		wait.Stop()
	}
}

// hold makes one connection and reads it until it ends. It reports whether the bus was sound on it.
//
// It reads by itself, not through the client's Channel, which drops messages when it is full: here whoever is slow holds up the
// connection, the server ends that when its buffer for us is full, and the loss is noticed.
func (b *bus) hold(ctx context.Context, turn int) (proved bool, err error) {
	ctx, cut := context.WithCancel(ctx)
	defer cut()
	ps, done, err := b.connect(ctx, turn)
	if err != nil {
		return false, err
	}
	defer done()
	l := &link{ps: ps, cut: cut, channels: make(map[string]*ask)}
	l.expect(b.private, time.Now())
	dctx, cancel := context.WithTimeout(ctx, 2*borrowed.DialTimeout)
	err = ps.Subscribe(dctx, b.private)
	cancel()
	if err != nil {
		return false, err
	}
	b.mu.Lock()
	b.link = l
	b.mu.Unlock()
	b.rouse() // the speaker subscribes the spaces' channels
	for {
		// Any error ends the connection. A time-out too: it may have struck in the middle of a message.
		message, err := ps.ReceiveTimeout(ctx, silence)
		if err = b.take(l, message, err); err != nil {
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.sound, err
		}
	}
}

// connect returns a PubSub that connects once, to one master, and never again; the turn says which master. In Cluster each master
// passes on what is published on any of them.
func (b *bus) connect(ctx context.Context, turn int) (ps *redis.PubSub, done func(), err error) {
	from, err := b.master(ctx, turn)
	if err != nil {
		return nil, nil, err
	}
	if from == nil { // a client of a kind unknown here: its own subscription, with its own time-outs
		ps = b.r.rdb.Subscribe(ctx)
		stop := context.AfterFunc(ctx, func() { _ = ps.Close() })
		return ps, func() { stop(); _ = ps.Close() }, nil
	}
	ps, done = borrowed.Subscribe(ctx, from)
	return ps, done, nil
}

// lost ends the present connection for all ears, which are deaf from now on.
func (b *bus) lost(ctx context.Context, err error) {
	b.mu.Lock()
	b.link = nil
	b.doubtLocked()
	for _, p := range b.pulses {
		p.missed, p.checked = 0, 0 // what was on its way got lost with the connection
	}
	first := !b.said
	b.said = true
	b.mu.Unlock()
	b.tune()
	var no *refusal
	if ctx.Err() != nil || errors.As(err, &no) || !first {
		return // closed; or reported as a refusal; or known
	}
	b.r.log.Warn("tiercache: the bus is lost, memory is not trusted until it is back", "error", err)
	b.report(fmt.Errorf("layers: bus lost: %w", err))
}

// take handles what was read from l. An error ends the connection.
func (b *bus) take(l *link, message any, err error) error {
	var reply redis.Error
	switch {
	case errors.As(err, &reply):
		return b.refuse(l, reply)
	case err != nil:
		return err
	}
	switch m := message.(type) {
	case *redis.Subscription:
		return b.confirm(l, m)
	case *redis.Message:
		if m.Channel == b.private {
			b.returned(m.Payload)
			return nil
		}
		b.mu.Lock()
		e := b.ears[m.Channel]
		b.mu.Unlock()
		if e != nil {
			e.take(m.Payload, time.Now())
		}
	}
	return nil
}

// confirm takes in the reply to a command that was carried out.
func (b *bus) confirm(l *link, s *redis.Subscription) error {
	b.mu.Lock()
	a := l.answered()
	if a == nil || a.channel != s.Channel || a.leave != (s.Kind == "unsubscribe") {
		b.mu.Unlock()
		return errReply
	}
	a.state = askGranted
	again := !a.leave && b.refused[a.channel]
	if again {
		delete(b.refused, a.channel)
	}
	e := b.ears[a.channel]
	b.mu.Unlock()
	if again {
		b.r.log.Info("tiercache: the bus subscription is no longer refused", "channel", a.channel)
	}
	switch {
	case a.leave:
	case a.channel == b.private:
		b.rouse() // the speaker probes
	case e != nil:
		e.tune()
	}
	return nil
}

// refuse takes in the reply to a command that was not carried out. Without the channel of the probes the connection is of no use.
func (b *bus) refuse(l *link, reply error) error {
	b.mu.Lock()
	a := l.answered()
	if a == nil || !redis.IsPermissionError(reply) { // another error passes by itself, or does not: with another connection we shall see
		b.mu.Unlock()
		return fmt.Errorf("%w: %w", errReply, reply)
	}
	a.state = askDenied
	first := !a.leave && !b.refused[a.channel]
	if first {
		b.refused[a.channel] = true
	}
	e := b.ears[a.channel]
	b.mu.Unlock()
	no := &refusal{channel: a.channel, reply: reply}
	if first {
		b.r.log.Error("tiercache: Redis refuses the bus subscription, memory is never trusted", "channel", a.channel, "error", reply)
		if a.channel == b.private {
			b.report(no)
		} else if e != nil {
			e.fail("bus", no)
		}
	}
	if a.channel == b.private {
		return no
	}
	return nil
}

// answered takes the command that is answered next from those owed; nil if none is.
func (l *link) answered() *ask {
	if len(l.owed) == 0 {
		return nil
	}
	a := l.owed[0]
	l.owed = l.owed[1:]
	return a
}

// expect records that the subscription of channel is about to be asked for.
func (l *link) expect(channel string, now time.Time) {
	a := &ask{channel: channel, at: now}
	l.owed = append(l.owed, a)
	l.channels[channel] = a
}

// subscribe brings the present connection's subscriptions in line with the ears that are open: what was closed is left before anything is
// joined, so that whoever hears an ear opened later knows that the server has forgotten the earlier ones. Only the speaker calls it, so that the
// commands are written in the order in which they are recorded.
func (b *bus) subscribe(ctx context.Context, now time.Time) {
	b.mu.Lock()
	l := b.link
	if l == nil {
		b.mu.Unlock()
		return
	}
	var joined, left []string
	for channel := range l.channels {
		if b.ears[channel] == nil && channel != b.private {
			left = append(left, channel)
			l.owed = append(l.owed, &ask{channel: channel, leave: true})
			delete(l.channels, channel)
		}
	}
	for channel := range b.ears {
		// One that was refused is asked for again, slowly.
		if a := l.channels[channel]; a == nil || a.state == askDenied && now.Sub(a.at) >= refusedPause {
			joined = append(joined, channel)
			l.expect(channel, now)
		}
	}
	b.mu.Unlock()
	// A command a channel: one refused channel must not take the others with it. What cannot be written ends the connection, which
	// its reader notices.
	for _, channel := range left {
		if err := l.ps.Unsubscribe(ctx, channel); err != nil {
			l.cut()
			return
		}
	}
	for _, channel := range joined {
		if err := l.ps.Subscribe(ctx, channel); err != nil {
			l.cut()
			return
		}
	}
}

// refusal says that Redis does not let this user subscribe.
type refusal struct {
	channel string
	reply   error
}

func (r *refusal) Error() string {
	return fmt.Sprintf("layers: Redis refuses to subscribe %s: %v", r.channel, r.reply)
}

func (r *refusal) Unwrap() error { return r.reply }
