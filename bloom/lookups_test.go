package bloom

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache/internal/segment"
)

// thrown answers volleys when it is told to, with Absent for keys that were there when the question was thrown.
type thrown struct {
	mu      sync.Mutex
	volleys [][]string
	rows    map[string]bool
	hold    chan struct{} // a value for each answer
}

func (w *thrown) throw(keys []string) []Answer {
	w.mu.Lock()
	w.volleys = append(w.volleys, slices.Clone(keys))
	answers := make([]Answer, len(keys))
	for i, key := range keys {
		answers[i] = Absent
		if w.rows[key] {
			answers[i] = Perhaps
		}
	}
	w.mu.Unlock()
	<-w.hold
	return answers
}

// Who asks while others are answered shares the next question with all who came meanwhile, each key in it once, however many ask; a question has at
// most 512 keys, and no more than two are under way.
func TestLookupsShareTheNextQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &thrown{hold: make(chan struct{})}
		l := &lookups{throw: w.throw}
		var asking sync.WaitGroup
		ask := func(keys ...string) {
			asking.Go(func() {
				for _, a := range l.ask(t.Context(), keys) {
					require.Equal(t, Absent, a)
				}
			})
			synctest.Wait()
		}
		ask("a")
		ask("b")
		for range 100 {
			ask("a", "c", "a")
		}
		require.Equal(t, [][]string{{"a"}, {"b"}}, w.volleys)
		w.hold <- struct{}{}
		synctest.Wait()
		require.Equal(t, []string{"a", "c"}, w.volleys[2])
		many := make([]string, maxVolley+1)
		for i := range many {
			many[i] = strconv.Itoa(i)
		}
		ask(many...)
		close(w.hold)
		asking.Wait()
		require.Len(t, w.volleys, 5)
		require.Len(t, w.volleys[3], maxVolley)
		require.Len(t, w.volleys[4], 1)
		l.close()
		require.Equal(t, []Answer{Unknown}, l.ask(t.Context(), []string{"a"}))
		require.Len(t, w.volleys, 5)
	})
}

// Race: 1. A key is asked for: absent. 2. Its row is announced, while that answer is on its way. 3. Somebody asks for it. He is not given the answer
// of 1.
func TestNobodyIsGivenAnAnswerThatWasAskedForBeforeHeCame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &thrown{hold: make(chan struct{}), rows: map[string]bool{}}
		l := &lookups{throw: w.throw}
		first, second := make(chan Answer, 1), make(chan Answer, 1)
		go func() { first <- l.ask(t.Context(), []string{"row"})[0] }()
		synctest.Wait()
		w.mu.Lock()
		w.rows["row"] = true
		w.mu.Unlock()
		go func() { second <- l.ask(t.Context(), []string{"row"})[0] }()
		synctest.Wait()
		close(w.hold)
		require.Equal(t, Absent, <-first)
		require.Equal(t, Perhaps, <-second)
		l.close()
	})
}

// The end of a caller's context ends his question alone, with Unknown for all of his keys; close waits for what is under way.
func TestEndOfAContextEndsOneQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &thrown{hold: make(chan struct{})}
		l := &lookups{throw: w.throw}
		ctx, cancel := context.WithCancel(t.Context())
		gone, stays := make(chan []Answer, 1), make(chan []Answer, 1)
		go func() { gone <- l.ask(ctx, []string{"a", "b"}) }()
		synctest.Wait()
		go func() { stays <- l.ask(t.Context(), []string{"a"}) }()
		synctest.Wait()
		cancel()
		require.Equal(t, []Answer{Unknown, Unknown}, <-gone)
		closed := make(chan struct{})
		go func() { l.close(); close(closed) }()
		synctest.Wait()
		select {
		case <-closed:
			t.Fatal("closed while a question is under way")
		default:
		}
		close(w.hold)
		require.Equal(t, []Answer{Absent}, <-stays)
		<-closed
	})
}

// P11: 1. Redis is slow. 2. More keys are asked for than it answers meanwhile, by callers whose time is shorter than that: they leave. 3. It is not asked for their
// keys, before which all who come later would wait; who stayed among them has his answer.
// Broken by: run without a look at askers; ask that does not take them back.
func TestNothingIsAskedForWhoHasLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &thrown{hold: make(chan struct{})}
		l := &lookups{throw: w.throw}
		var asking sync.WaitGroup
		ask := func(ctx context.Context, want Answer, name string, n int) {
			keys := make([]string, n)
			for i := range keys {
				keys[i] = name + strconv.Itoa(i)
			}
			asking.Go(func() {
				for _, a := range l.ask(ctx, keys) {
					require.Equal(t, want, a, name)
				}
			})
			synctest.Wait()
		}
		for i := range maxThrowers {
			ask(t.Context(), Absent, "first "+strconv.Itoa(i), 1)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ask(ctx, Unknown, "leaves ", 10*maxVolley)
		ask(t.Context(), Absent, "stays ", maxVolley)
		ask(ctx, Unknown, "leaves too ", 10*maxVolley)
		cancel()
		synctest.Wait()
		ask(t.Context(), Absent, "comes ", 1)
		close(w.hold)
		asking.Wait()
		l.close()
		var asked []string
		for _, keys := range w.volleys[maxThrowers:] {
			asked = append(asked, keys...)
		}
		require.Equal(t, maxVolley+1, len(asked))
		require.Contains(t, asked, "comes 0")
		require.Empty(t, l.waiting)
	})
}

// slowStore takes so long for an announcement; nothing is served.
type slowStore struct {
	SegmentStore
	takes time.Duration
}

func (s slowStore) AnnounceSegments(context.Context, ...string) (segment.Head, error) {
	time.Sleep(s.takes)
	return segment.Head{}, nil
}

func (slowStore) EditSegments(context.Context, ...segment.Edit) ([]bool, error) { return nil, nil }

// An announcement that took so long that a build may have missed it is an error, else not.
func TestAnnouncementThatTookTooLongIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for takes, want := range map[time.Duration]error{announceWithin: nil, announceWithin + time.Millisecond: ErrSlow} {
			g, err := NewSharedGuard(Options{Capacity: 1, Form: InRedis}, slowStore{takes: takes})
			require.NoError(t, err)
			require.ErrorIs(t, g.Announce(t.Context(), "row"), want)
			g.Close()
		}
	})
}
