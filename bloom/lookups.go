package bloom

import (
	"context"
	"runtime"
	"sync"
)

const (
	maxVolley   = 512 // keys asked at once; chosen, as the batches of GETs; not tuned
	maxThrowers = 2   // volleys under way at a time: one that hangs must not stop all; chosen; not tuned
)

// lookups shares round trips: who asks while others are being answered waits for the next volley, together with all who came meanwhile.
// Nobody is given an answer that was asked for before he came: a row announced in between would be called absent. So a key is asked at
// most twice at a time, however many ask for it. What nobody waits for any more is not asked: else those who leave while Redis is slow would make the
// wait longer for all who come.
type lookups struct {
	throw func(keys []string) []Answer // returns within a bounded time, an answer for each key

	mu       sync.Mutex
	waiting  []*volley // oldest first; the last one takes more keys
	throwers int
	closed   bool
	work     sync.WaitGroup
}

// volley is keys that are asked together. Its answers are written before done is closed.
type volley struct {
	keys    []string
	at      map[string]int
	answers []Answer
	done    chan struct{}
	askers  int // who wait for it, once for each of their keys; guarded by lookups.mu
}

// ask returns the answers for keys, Unknown for all when ctx ends first or after close.
func (l *lookups) ask(ctx context.Context, keys []string) []Answer {
	out := make([]Answer, len(keys))
	type place struct {
		v  *volley
		at int
	}
	places := make([]place, len(keys))
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return out
	}
	for i, key := range keys {
		v := l.openLocked()
		at, ok := v.at[key]
		if !ok {
			at = len(v.keys)
			v.at[key] = at
			v.keys = append(v.keys, key)
		}
		v.askers++
		places[i] = place{v, at}
	}
	if l.throwers < maxThrowers && len(l.waiting) > 0 {
		l.throwers++
		l.work.Go(l.run)
	}
	l.mu.Unlock()
	for i, p := range places {
		select {
		case <-p.v.done:
			out[i] = p.v.answers[p.at]
		case <-ctx.Done():
			l.mu.Lock()
			for _, p := range places[i:] {
				p.v.askers--
			}
			l.mu.Unlock()
			return make([]Answer, len(keys))
		}
	}
	return out
}

// openLocked returns the volley that takes the next key.
func (l *lookups) openLocked() *volley {
	if n := len(l.waiting); n > 0 && len(l.waiting[n-1].keys) < maxVolley {
		return l.waiting[n-1]
	}
	v := &volley{at: make(map[string]int), done: make(chan struct{})}
	l.waiting = append(l.waiting, v)
	return v
}

// run throws what waits until nothing does.
func (l *lookups) run() {
	for {
		runtime.Gosched() // let those who are ready to ask do it first
		l.mu.Lock()
		if len(l.waiting) == 0 {
			l.throwers--
			l.mu.Unlock()
			return
		}
		v := l.waiting[0]
		l.waiting = append(l.waiting[:0:0], l.waiting[1:]...)
		wanted := v.askers > 0
		l.mu.Unlock()
		if !wanted {
			continue
		}
		v.answers = l.throw(v.keys)
		close(v.done)
	}
}

// close waits for what is under way; from then on every answer is Unknown.
func (l *lookups) close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.work.Wait()
}
