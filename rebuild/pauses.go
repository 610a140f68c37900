package rebuild

import (
	"sync"
	"time"
)

// Pauses is the pause after failed loads of a key, for a process that has no Redis to keep it in: none after the first failure, base
// after the second in a row, doubled by each further one up to longest. A success ends it.
//
// It is bounded: it knows the last failures of at most a fixed number of keys; where more fail at once, some of them are asked again
// sooner. It may be used concurrently.
type Pauses struct {
	base, longest time.Duration
	bound         int

	mu   sync.Mutex // protects keys
	keys map[string]failures
}

type failures struct {
	inARow int
	until  time.Time
}

// NewPauses returns a Pauses that remembers at most bound keys.
func NewPauses(base, longest time.Duration, bound int) *Pauses {
	return &Pauses{base: base, longest: longest, bound: bound, keys: make(map[string]failures)}
}

// Blocked reports whether the pause of key is not over.
func (b *Pauses) Blocked(key string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	f, ok := b.keys[key]
	return ok && time.Now().Before(f.until)
}

// Note tells how a load of key ended.
func (b *Pauses) Note(key string, failed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f, known := b.keys[key]
	if !failed {
		if known {
			delete(b.keys, key)
		}
		return
	}
	now := time.Now()
	if known && now.After(f.until.Add(b.longest)) {
		f = failures{} // long past: not in a row
	}
	if !known && len(b.keys) >= b.bound {
		for some := range b.keys { // whichever: the bound matters, not who is asked again sooner
			delete(b.keys, some)
			break
		}
	}
	f.inARow++
	f.until = now
	if f.inARow > 1 {
		f.until = now.Add(b.pause(f.inARow))
	}
	b.keys[key] = f
}

// pause is base·2^(n-2), at most longest.
func (b *Pauses) pause(n int) time.Duration {
	d := b.base
	for range n - 2 {
		if d >= b.longest {
			break
		}
		d *= 2
	}
	return min(d, b.longest)
}
