package rebuild

import (
	"fmt"
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// hotLog is a HotOwner that notes what it is told.
type hotLog struct {
	reads atomic.Int32 // what Beat answers

	mu  sync.Mutex
	hot map[string]bool
	all []string // heated so far
	top []HotKey[int]
}

func (l *hotLog) Heat(k HotKey[int]) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.hot == nil {
		l.hot = map[string]bool{}
	}
	l.hot[k.ID] = true
	l.all = append(l.all, k.ID)
}

func (l *hotLog) Cool(k HotKey[int]) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.hot, k.ID)
}

func (l *hotLog) Window(top []HotKey[int]) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.top = top
}

func (l *hotLog) Beat(HotKey[int]) int { return int(l.reads.Load()) }

func (l *hotLog) isHot(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.hot[id]
}

func (l *hotLog) heated() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.all)
}

// reading has each key read so often in the next second of virtual time, spread over it.
func reading(h *HotKeys[int], rates map[string]int) {
	const steps = 20
	for range steps {
		for id, rate := range rates {
			for range rate / steps {
				h.Seen(id, 0)
			}
		}
		pass(time.Second / steps)
	}
}

// A key that is suddenly read often is hot after two windows at most, one that is not is never; once it is left alone it cools after 30 s below
// half of what made it hot, not before, and then nothing ticks any more. Broken by: coolLocked without coolAfter (it cools with the third
// window); rest without setting asleep.
func TestKeyIsHotAfterTwoSecondsAndCoolsAfterThirty(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		owner := &hotLog{}
		h := NewHotKeys[int](owner)
		defer h.Close()
		cold := map[string]int{}
		for i := range 200 {
			cold[fmt.Sprint(i)] = 40 // 8,000 a second in all: a hundredth of them is 80
		}
		reading(h, cold)
		reading(h, cold)
		require.Empty(t, owner.heated())
		warm := map[string]int{"hot": 240}
		for id, rate := range cold {
			warm[id] = rate
		}
		reading(h, warm)
		reading(h, warm)
		synctest.Wait()
		require.True(t, owner.isHot("hot"))
		require.Equal(t, []string{"hot"}, owner.heated())
		require.Equal(t, 1, h.Hot())
		top := h.Top(1)
		require.Equal(t, "hot", top[0].ID)
		require.InDelta(t, 180, top[0].Rate, 70, "reads a second: three quarters of them, since the first window counts half")

		for range 29 {
			reading(h, cold)
		}
		require.True(t, owner.isHot("hot"), "below for less than 30 s")
		for range 6 {
			reading(h, cold)
		}
		synctest.Wait()
		require.False(t, owner.isHot("hot"))
		pass(20 * time.Second)
		synctest.Wait()
		require.True(t, h.asleep.Load(), "nothing is read")
		require.Empty(t, h.Top(0))

		reading(h, map[string]int{"hot": 2000})
		synctest.Wait()
		require.True(t, owner.isHot("hot"), "a read wakes it")
	})
}

// A hot key that memory answers leaves it no more: that it is still read is known by the beats, and it stays hot by them. Broken by: ratesLocked
// without the beats.
func TestKeyStaysHotByWhatMemoryAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		owner := &hotLog{}
		h := NewHotKeys[int](owner)
		defer h.Close()
		reading(h, map[string]int{"pinned": 1000})
		synctest.Wait()
		require.True(t, owner.isHot("pinned"))
		owner.reads.Store(beatReads)
		pass(2 * time.Minute)
		require.True(t, owner.isHot("pinned"))
		owner.reads.Store(0)
		pass(25 * time.Second)
		require.True(t, owner.isHot("pinned"))
		pass(15 * time.Second)
		require.False(t, owner.isHot("pinned"))
	})
}

// memoryAnswers has so many reads be answered by memory in the next second of virtual time, spread over it: the i-th is of key(i).
type memoryAnswers struct {
	h *HotKeys[int]
	n uint64 // reads so far
}

func (m *memoryAnswers) read(reads int, key func(i int) string) {
	const steps = 20
	for step := range steps {
		for i := reads * step / steps; i < reads*(step+1)/steps; i++ {
			if m.n++; m.h.Samples(m.n) {
				m.h.Answered(key(i), 0)
			}
		}
		synctest.Wait()
		pass(time.Second / steps)
	}
	synctest.Wait()
}

// A key that memory answers from its first read on is hot within two seconds, though only a part of such reads is looked at: at half of 500 reads a
// second, at a twentieth of some thousand, at a fiftieth of half a million. Its reads come in turn with the others', always at the same places.
// What is read less often than that never is. Broken by: Samples by n itself instead of its hash (of reads in turn the same ones are then sampled
// always); endWindow without the lowering of mask (half of 500 is not seen after the half million).
func TestKeyThatMemoryAnswersIsHotAfterTwoSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		owner := &hotLog{}
		m := &memoryAnswers{h: NewHotKeys[int](owner)}
		defer m.h.Close()
		for _, c := range []struct {
			id            string
			reads, every  int // a second, and of which each every-th is of the key
			others, quiet int // keys that share the rest, each less than a hundredth; seconds in which these alone are read
		}{
			{"half of 500", 500, 2, 200, 5},
			{"a fiftieth of half a million", 500_000, 50, 5000, 2},
			{"half of 500 again", 500, 2, 200, 5},
			{"240 of 4,800", 4800, 20, 1000, 0},
		} {
			other := func(i int) string { return fmt.Sprint(i % c.others) }
			for range c.quiet {
				m.read(c.reads, other)
			}
			for range 2 {
				m.read(c.reads, func(i int) string {
					if i%c.every == 0 {
						return c.id
					}
					return other(i / 2)
				})
			}
			require.True(t, owner.isHot(c.id), c.id)
			top := m.h.Top(1)
			require.Equal(t, c.id, top[0].ID)
			require.InEpsilon(t, 0.75*float64(c.reads/c.every), top[0].Rate, 0.5, "%s: three quarters, since the first window counts half", c.id)
		}
		require.Len(t, owner.heated(), 4, "only these: %v", owner.heated())
	})
}

// However much memory answers, at most 2,000 reads a second are looked at once it is known how much that is, and then one sample, though it
// stands for hundreds of reads, makes no key hot; nor when hardly anything is read after that. Broken by: add without the rise of mask;
// ratesLocked without hotProof.
func TestSamplesOfManyAnswersAreFewAndProveNothingAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		owner := &hotLog{}
		m := &memoryAnswers{h: NewHotKeys[int](owner)}
		defer m.h.Close()
		even := func(i int) string { return fmt.Sprint(i % 5000) }
		m.read(500_000, even)
		lost := m.h.dropped.Load() // more came at once than the queue takes
		for range 3 {
			samples := 0
			m.read(500_000, func(i int) string {
				samples++
				return even(i)
			})
			require.LessOrEqual(t, samples, answeredMost)
			require.Greater(t, samples, answeredMost/samplesFew/2)
			require.Equal(t, lost, m.h.dropped.Load())
		}
		for range 60 {
			m.read(500, even)
		}
		require.Empty(t, owner.heated())
		require.EqualValues(t, answeredMask, m.h.answered.mask.Load(), "few reads are looked at closely again")
	})
}

// However much is read, the sketch takes no more than 20,000 samples a window once it has seen what comes, and says the same of a key's rate.
// Broken by: Seen without its chance; add without fade where the mask rises.
func TestSamplesOfManyReadsAreFewAndTrue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		owner := &hotLog{}
		h := NewHotKeys[int](owner)
		defer h.Close()
		const reads = 100_000 // a second
		for window := range 3 {
			for i := range reads {
				id := "a" // one read in ten
				if i%10 > 0 {
					id = fmt.Sprint(i % 5000)
				}
				h.Seen(id, 0)
				if i%100 == 0 {
					synctest.Wait() // the sketch follows
					pass(time.Millisecond)
				}
			}
			if synctest.Wait(); window == 0 {
				require.InEpsilon(t, reads/10/2, h.Top(1)[0].Rate, 0.30, "the first window counts half")
			}
		}
		h.mu.Lock()
		mask, taken := h.leaving.mask.Load(), h.leaving.taken
		h.mu.Unlock()
		require.GreaterOrEqual(t, mask, uint32(7))
		require.Less(t, taken, leavingMost)
		top := h.Top(1)
		require.Equal(t, "a", top[0].ID)
		require.InEpsilon(t, reads/10, top[0].Rate, 0.30)
		require.Zero(t, h.dropped.Load())

		pass(time.Second)
		for range 12 {
			reading(h, map[string]int{"few": 400})
		}
		require.Zero(t, h.leaving.mask.Load(), "few reads are all counted again")
		require.InEpsilon(t, 400, h.Top(1)[0].Rate, 0.20)
	})
}

// What was sampled while more reads were, and waited meanwhile, counts for what it stood for then. Broken by: add without regard to the sample's
// mask.
func TestSampleOfEarlierReadsCountsLess(t *testing.T) {
	var s hotStream[int]
	s.init(0, 1<<20, answeredWidth, answeredTop)
	s.mask.Store(1<<3 - 1)
	seed := maphash.MakeSeed()
	for range 16_000 {
		s.add(seed, &hotSample[int]{id: "a", mask: 1<<1 - 1})
	}
	require.InEpsilon(t, 16_000/4, s.top.heap[0].count, 0.15, "one in two was sampled, one in eight is now")
	before := s.top.heap[0].count
	s.add(seed, &hotSample[int]{id: "a", mask: 1<<5 - 1})
	require.Equal(t, before+1, s.top.heap[0].count, "and never for more than one")
}

// A key that all processes together read 3,000 times a second is hot here too, though this one reads it thirty times; it stays so until the fleet
// has read it less than half as often for 30 s. A key that others read and this process does not is not hot here. Broken by: heatLocked without
// fleet (never hot); coolLocked without fleet (not hot any more after 30 s).
func TestKeyThatTheFleetReadsOftenIsHot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		owner := &hotLog{}
		h := NewHotKeys[int](owner)
		defer h.Close()
		rates := map[string]int{"of many": 40, "of few": 40}
		for i := range 200 {
			rates[fmt.Sprint(i)] = 100
		}
		h.Fleet(map[string]float64{"of many": 3000, "of few": 2900, "of others": 50_000})
		for range 3 {
			reading(h, rates)
		}
		synctest.Wait()
		require.Equal(t, []string{"of many"}, owner.heated())
		owner.mu.Lock()
		require.Len(t, owner.top, 202, "the owner is told of all")
		owner.mu.Unlock()
		h.Fleet(map[string]float64{"of many": 1500})
		for range 40 {
			reading(h, rates)
		}
		require.True(t, owner.isHot("of many"))
		h.Fleet(nil)
		for range 29 {
			reading(h, rates)
		}
		require.True(t, owner.isHot("of many"), "for less than 30 s")
		for range 300 { // a sample that tells too much, or samples lost on a slow machine, begin the thirty seconds anew
			if !owner.isHot("of many") {
				return
			}
			reading(h, rates)
		}
		require.Fail(t, "it is hot for good")
	})
}

// At most 256 keys are hot. One that is read twice as often as the least of them takes its place, one that is not does not. Broken by: heatLocked
// without the comparison of the rates; heatLocked without hotMost.
func TestHotKeysAreBounded(t *testing.T) {
	h := NewHotKeys[int](&hotLog{})
	defer h.Close()
	heat := func(rates ...HotKey[int]) (heated, displaced []HotKey[int]) {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.heatLocked(rates)
	}
	var rates []HotKey[int]
	for i := range hotMost + 10 {
		rates = append(rates, HotKey[int]{ID: fmt.Sprint(i), Rate: float64(1000 - i)})
	}
	heated, displaced := heat(rates...)
	require.Len(t, heated, hotMost)
	require.Empty(t, displaced)
	rates = rates[:hotMost]
	least := rates[hotMost-1]

	heated, displaced = heat(slices.Insert(slices.Clone(rates), 0, HotKey[int]{ID: "likewise", Rate: 1.9 * least.Rate})...)
	require.Empty(t, heated)
	require.Empty(t, displaced)
	heated, displaced = heat(slices.Insert(slices.Clone(rates), 0, HotKey[int]{ID: "hotter", Rate: 2 * least.Rate})...)
	require.Equal(t, "hotter", heated[0].ID)
	require.Equal(t, least.ID, displaced[0].ID)
	require.Equal(t, hotMost, h.Hot())
}

// Readers, Top and Close may come at once, and what is read after Close is not kept beyond the buffers. Broken by: pass without its default,
// which then waits for a sketch that is gone.
func TestHotKeysCloseUnderReaders(t *testing.T) {
	h := NewHotKeys[int](&hotLog{})
	var readers sync.WaitGroup
	for r := range 4 {
		readers.Go(func() {
			for i := range 20_000 {
				h.Seen(fmt.Sprint(i%(100+r)), i)
				if i%1000 == 0 {
					h.Top(3)
					h.Answered("x", i)
				}
				if r == 0 && i == 10_000 {
					h.Close()
				}
			}
		})
	}
	readers.Wait()
	h.Close()
	require.Empty(t, h.Top(0))
	require.Zero(t, h.Hot())
	require.LessOrEqual(t, len(h.full), sampleQueue)
}

// BenchmarkHotKeysSeen is what a read that memory could not answer pays: all sampled, and one in 64.
func BenchmarkHotKeysSeen(b *testing.B) {
	for _, every := range []uint32{0, 6} {
		b.Run(fmt.Sprintf("one in %d", 1<<every), func(b *testing.B) {
			h := NewHotKeys[int](&hotLog{})
			defer h.Close()
			h.leaving.mask.Store(1<<every - 1)
			ids := make([]string, 1000)
			for i := range ids {
				ids[i] = fmt.Sprint("key:", i)
			}
			b.RunParallel(func(pb *testing.PB) {
				for i := 0; pb.Next(); i++ {
					h.Seen(ids[i%1000], i)
				}
			})
		})
	}
}

// BenchmarkHotKeysSamples is what a memory hit pays: the question, and what is told of the few that are picked.
func BenchmarkHotKeysSamples(b *testing.B) {
	h := NewHotKeys[int](&hotLog{})
	defer h.Close()
	b.RunParallel(func(pb *testing.PB) {
		for n := uint64(1); pb.Next(); n++ {
			if h.Samples(n) {
				h.Answered("key", 0)
			}
		}
	})
}
