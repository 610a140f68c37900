package rebuild

import (
	"hash/maphash"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// What makes a key hot. Chosen, but where a reason stands; not tuned.
const (
	hotWindow = time.Second
	hotRate   = 200.0            // reads a second that leave memory: a hundred such keys are a fifth of what one Redis can do
	hotShare  = 0.01             // or so much of all reads that leave memory, or of all reads,
	hotLeast  = 20.0             // but not fewer than so many a second: among few reads everything has a large share
	hotProof  = 12               // samples behind a rate, at least: ADR 15 has what chance does with them
	coolShare = 0.5              // a key is hot until it has been below this share of the rate that made it hot
	coolAfter = 30 * time.Second // for so long
	hotBeat   = 25 * time.Millisecond
	beatReads = 3  // reads that a beat can tell: a key asked for a hundred times a second shows most of them
	beatSees  = 80 // reads a second that beats are sure to tell from fewer, since they count no further
	hotMost   = 256
	fleetRate = 3000.0 // reads a second in all processes together: the clouds' Redis call a key hot from there on

	sampleBuffer = 64 // samples of one stripe that wait together
	sampleQueue  = 16 // buffers that wait for the sketch; what comes beyond is dropped
)

// HotKey is a key that is read often.
type HotKey[K any] struct {
	ID   string
	Key  K
	Rate float64 // reads a second, of late, as far as the samples tell
	Hot  bool    // it was often enough for HotOwner.Heat

	need float64 // the rate that makes it hot
}

// HotOwner is what is done with hot keys. Its methods are called one at a time, on the goroutine of the HotKeys, never after Close has
// returned; they must not block, and must not call Close.
type HotOwner[K any] interface {
	// Heat is told that a key is hot from now on, Cool that it is no longer.
	Heat(k HotKey[K])
	Cool(k HotKey[K])
	// Window is told the keys that are read most, first the most, at the end of each second in which something was read or is hot.
	Window(top []HotKey[K])
	// Beat is called for each hot key every 25 ms. It returns how many reads of it memory has answered since the last beat, 3 for all
	// that are more.
	Beat(k HotKey[K]) (reads int)
}

// HotKeys finds the keys that are read most, by samples, in a fixed space: two sketches with a list of the largest each, over windows of a
// second, the older ones counting half as much with each.
//
// Reads that leave memory (Seen) are what Redis and the source feel: all of them are samples, up to 20,000 a second. Of those that memory
// answers (Samples, Answered) one in eight is, up to 2,000 a second. Beyond that only every second is sampled, and so on.
//
// A key is hot from 200 reads a second on, or from a hundredth of all reads that leave memory, or of all reads, if it is at least 20 a
// second and twelve samples tell; until it was below half of that for 30 s. At most 256 are: a key that is read twice as often takes the
// place of the one read least. What the owner learns from other processes (Fleet) makes a key hot in this one too.
//
// Seen and Samples cost a few nanoseconds where nothing is sampled, else one short lock that a sixteenth of the callers share; they never
// wait for the sketch. While nothing is read and nothing is hot, no timer runs. All methods may be called concurrently.
type HotKeys[K any] struct {
	owner   HotOwner[K]
	seed    maphash.Seed
	stripes [16]hotStripe[K]
	full    chan []hotSample[K]
	spare   chan []hotSample[K]
	asleep  atomic.Bool
	wakes   chan struct{}
	dropped atomic.Uint64
	done    chan struct{}
	once    sync.Once
	ended   sync.WaitGroup

	mu       sync.Mutex // the rest
	leaving  hotStream[K]
	answered hotStream[K]
	tally    *tally[K] // nil: nobody takes it
	began    time.Time
	hot      map[string]*hotState[K]
	fleet    map[string]float64 // reads a second in all processes, of keys that have many; what the owner told last
	rates    []HotKey[K]        // as of the last window, first the largest

	beating []*hotState[K] // the hot keys as of the last window, for the goroutine
}

// hotStripe is a buffer of samples, one of those that callers choose from at random.
type hotStripe[K any] struct {
	mu      sync.Mutex
	samples []hotSample[K]
	_       [32]byte
}

type hotSample[K any] struct {
	id       string
	key      K
	answered bool
	mask     uint32 // of its stream, when it was taken
}

// hotState is what is known of a hot key.
type hotState[K any] struct {
	HotKey[K]
	need   float64   // it stays hot from this rate on
	low    time.Time // since when it is below; zero: it is not
	reads  int       // that beats told of, in this window; of the goroutine
	beaten float64   // the same, a second, of late
}

// NewHotKeys returns a HotKeys that tells owner. It runs until Close.
func NewHotKeys[K any](owner HotOwner[K]) *HotKeys[K] {
	h := &HotKeys[K]{
		owner: owner, seed: maphash.MakeSeed(),
		full:  make(chan []hotSample[K], sampleQueue),
		spare: make(chan []hotSample[K], sampleQueue),
		wakes: make(chan struct{}, 1), done: make(chan struct{}),
		hot: make(map[string]*hotState[K]),
	}
	h.leaving.init(leavingMask, leavingMost, leavingWidth, leavingTop)
	h.answered.init(answeredMask, answeredMost, answeredWidth, answeredTop)
	h.asleep.Store(true)
	h.ended.Go(h.run)
	return h
}

// Close ends the goroutine and waits for it. Calls after it do nothing, and Top is empty. It may be called again.
func (h *HotKeys[K]) Close() {
	h.once.Do(func() { close(h.done) })
	h.ended.Wait()
}

// Seen counts a read of key that memory could not answer.
func (h *HotKeys[K]) Seen(id string, key K) {
	r := rand.Uint64()                                      //nolint:gosec // nothing secret depends on it
	if mask := h.leaving.mask.Load(); uint32(r)&mask == 0 { //nolint:gosec // the lower half is meant
		h.sample(r, hotSample[K]{id: id, key: key, mask: mask})
	}
}

// Samples reports whether Answered is to be told of the n-th read that memory answered. The caller counts; it may do so in several places,
// each for itself. Which reads they are looks random: readers that go through their keys in turn would else be sampled at the same ones always.
func (h *HotKeys[K]) Samples(n uint64) bool {
	return uint32(mixed(n))&h.answered.mask.Load() == 0 //nolint:gosec // the lower half is meant
}

// Answered counts a read of key that memory answered, one of those that Samples picked.
func (h *HotKeys[K]) Answered(id string, key K) {
	s := hotSample[K]{id: id, key: key, answered: true, mask: h.answered.mask.Load()}
	h.sample(rand.Uint64(), s) //nolint:gosec // as above
}

// sample puts a sample into a buffer, by the upper bits of a random number. A full one goes to the sketch, or is lost if that cannot follow.
func (h *HotKeys[K]) sample(r uint64, s hotSample[K]) {
	b := &h.stripes[r>>32%uint64(len(h.stripes))]
	b.mu.Lock()
	if b.samples = append(b.samples, s); len(b.samples) >= sampleBuffer {
		b.samples = h.pass(b.samples)
	}
	b.mu.Unlock()
	if h.asleep.Load() {
		select {
		case h.wakes <- struct{}{}:
		default:
		}
	}
}

// pass hands a full buffer to the sketch and returns an empty one.
func (h *HotKeys[K]) pass(samples []hotSample[K]) []hotSample[K] {
	select {
	case h.full <- samples:
	default:
		h.dropped.Add(uint64(len(samples)))
		clear(samples)
		return samples[:0]
	}
	select {
	case empty := <-h.spare:
		return empty
	default:
		return make([]hotSample[K], 0, sampleBuffer)
	}
}

// Top returns the n keys that were read most as of the last whole second, first the most; n of zero or less: all that are known, some hundreds
// at most.
func (h *HotKeys[K]) Top(n int) []HotKey[K] {
	h.mu.Lock()
	defer h.mu.Unlock()
	top := h.rates
	if n > 0 {
		top = top[:min(n, len(top))]
	}
	return slices.Clone(top)
}

// Fleet tells how many reads a second some keys have in all processes together, as far as is known; it stands until the next call. A key that is
// read 3,000 times a second is hot in each process that reads it, however seldom, until it has been below half of that for 30 s, and below
// what makes it hot by itself. The map must not be changed any more.
func (h *HotKeys[K]) Fleet(rates map[string]float64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fleet = rates
}

// Hot returns how many keys are hot.
func (h *HotKeys[K]) Hot() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.hot)
}

// run feeds the sketches, closes each window and beats for the hot keys. It sleeps while there is nothing to do.
func (h *HotKeys[K]) run() {
	defer h.forget()
	for {
		select {
		case <-h.done:
			return
		case <-h.wakes:
		}
		h.asleep.Store(false)
		if !h.watch() {
			return
		}
	}
}

// watch is run while there is something to do. It returns false once the HotKeys is closed.
func (h *HotKeys[K]) watch() bool {
	h.began = time.Now()
	window := time.NewTicker(hotWindow)
	defer window.Stop()
	beat := time.NewTicker(hotBeat)
	defer beat.Stop()
	beat.Stop()
	beating := false
	for {
		select {
		case <-h.done:
			return false
		case samples := <-h.full:
			h.feed(samples)
			continue
		case <-beat.C:
			h.beat()
			continue
		case <-window.C:
		}
		read := h.collect()
		hot := h.closeWindow(time.Now())
		switch {
		case hot > 0 && !beating:
			beat.Reset(hotBeat)
		case hot == 0 && beating:
			beat.Stop()
		}
		if beating = hot > 0; !beating && !read && h.rest() {
			return true
		}
	}
}

// rest goes to sleep, unless something was read meanwhile: who puts a sample and finds the sketch awake has put it before the last look here.
func (h *HotKeys[K]) rest() bool {
	h.mu.Lock()
	known := len(h.leaving.top.heap) + len(h.answered.top.heap)
	if known == 0 {
		h.rates = nil
	}
	h.mu.Unlock()
	if known > 0 {
		return false
	}
	h.asleep.Store(true)
	if h.collect() {
		h.asleep.Store(false)
		return false
	}
	return true
}

// collect feeds what waits in the queue and the stripes, and reports whether that was anything.
func (h *HotKeys[K]) collect() (found bool) {
	for {
		select {
		case samples := <-h.full:
			h.feed(samples)
			found = true
			continue
		default:
		}
		break
	}
	for i := range h.stripes {
		s := &h.stripes[i]
		s.mu.Lock()
		samples := s.samples
		s.samples = nil
		s.mu.Unlock()
		if len(samples) > 0 {
			h.feed(samples)
			found = true
		}
	}
	return found
}

// feed takes samples into the sketches and gives their buffer back.
func (h *HotKeys[K]) feed(samples []hotSample[K]) {
	h.mu.Lock()
	for i := range samples {
		if h.tally != nil {
			h.tally.add(h.seed, &samples[i])
		}
		if s := &samples[i]; s.answered {
			h.answered.add(h.seed, s)
		} else {
			h.leaving.add(h.seed, s)
		}
	}
	h.mu.Unlock()
	clear(samples)
	select {
	case h.spare <- samples[:0]:
	default:
	}
}

// beat asks the owner about each hot key, without the lock: it may ask for Top.
func (h *HotKeys[K]) beat() {
	for _, k := range h.beating {
		k.reads += min(h.owner.Beat(k.HotKey), beatReads)
	}
}

// forget leaves nothing behind after Close.
func (h *HotKeys[K]) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.leaving.top, h.answered.top = newTopKeys[K](leavingTop), newTopKeys[K](answeredTop)
	clear(h.hot)
	h.rates, h.tally, h.fleet = nil, nil, nil
}
