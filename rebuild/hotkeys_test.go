package rebuild

import (
	"fmt"
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

// What memory answers is seen too, by one read in AnsweredEvery, once it is some thousand a second; and eight samples are needed, since one
// would already stand for five hundred reads. Broken by: ratesLocked without hotProof.
func TestKeyIsHotByWhatMemoryAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		owner := &hotLog{}
		h := NewHotKeys[int](owner)
		defer h.Close()
		for range 3 {
			h.Answered("chance", 0)
			for range 10 { // ten thousand a second
				h.Answered("often", 0)
			}
			pass(time.Second)
		}
		synctest.Wait()
		require.Equal(t, []string{"often"}, owner.heated())
		require.InDelta(t, 10*AnsweredEvery, h.Top(1)[0].Rate, 6*AnsweredEvery)
	})
}

// However much is read, the sketch takes no more than 20,000 samples a window once it has seen what comes, and says the same of a key's rate.
// Broken by: Seen without its chance; rescaleLocked without the shift of what was counted.
func TestSamplesOfManyReadsAreFewAndTrue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		owner := &hotLog{}
		h := NewHotKeys[int](owner)
		defer h.Close()
		const reads = 100_000 // a second
		for range 3 {
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
		}
		h.mu.Lock()
		every, taken := h.every.Load(), h.taken
		h.mu.Unlock()
		require.GreaterOrEqual(t, every, uint32(3))
		require.Less(t, taken, samplesMost)
		top := h.Top(1)
		require.Equal(t, "a", top[0].ID)
		require.InEpsilon(t, reads/10, top[0].Rate, 0.30)
		require.Zero(t, h.dropped.Load())

		pass(time.Second)
		for range 12 {
			reading(h, map[string]int{"few": 400})
		}
		require.Zero(t, h.every.Load(), "few reads are all counted again")
		require.InEpsilon(t, 400, h.Top(1)[0].Rate, 0.20)
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
			h.every.Store(every)
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
