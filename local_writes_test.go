package tiercache_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/bloom"
)

type cacheOfStrings = *tiercache.Cache[string, string]

// aWrite is a call that says that the row of key has changed.
type aWrite struct {
	name string
	call func(ctx context.Context, c cacheOfStrings, s *source, key, row string) error
}

// theWrites are all calls after which nothing loaded before may be answered. Each changes the row first, as its caller would.
var theWrites = []aWrite{
	{"Invalidate", func(ctx context.Context, c cacheOfStrings, s *source, key, row string) error {
		s.write(key, row)
		return c.Invalidate(ctx, key)
	}},
	{"Set", func(ctx context.Context, c cacheOfStrings, s *source, key, row string) error {
		s.write(key, row)
		return c.Set(ctx, key, row)
	}},
	{"Update", func(ctx context.Context, c cacheOfStrings, s *source, key, row string) error {
		return c.Update(ctx, key, func(context.Context) error { s.write(key, row); return nil })
	}},
	{"UpdateMany", func(ctx context.Context, c cacheOfStrings, s *source, key, row string) error {
		return c.UpdateMany(ctx, []string{"another", key}, func(context.Context) error { s.write(key, row); return nil })
	}},
	{"Announce", func(ctx context.Context, c cacheOfStrings, s *source, key, row string) error {
		err := c.Announce(ctx, key)
		s.write(key, row)
		return err
	}},
	{"Clear", func(ctx context.Context, c cacheOfStrings, s *source, key, row string) error {
		s.write(key, row)
		return c.Clear(ctx)
	}},
}

// overtaken makes the next load read its row and then wait: reached is closed when it has read, resume lets it go on. Later loads pass.
func (s *source) overtaken() (reached <-chan struct{}, resume func()) {
	read, again := make(chan struct{}), make(chan struct{})
	var once sync.Once
	s.after(func(string) {
		first := false
		once.Do(func() { first = true })
		if first {
			close(read)
			<-again
		}
	})
	return read, sync.OnceFunc(func() { close(again) })
}

func TestLoadBegunBeforeAWriteIsNeitherKeptNorJoined(t *testing.T) {
	// P2, P3 in one process: 1 a load reads the old row and is held; 2 the row is changed and the cache told; 3 a Get that begins now does
	// not wait for the old load and has the new row; 4 the old load ends: its waiters get their value, memory does not.
	for _, write := range theWrites {
		for _, batch := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, batch=%v", write.name, batch), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := newSource(map[string]string{"k": "old", "l": "old"})
					reached, resume := s.overtaken()
					defer resume()
					c := openAlone(t, s, nil)
					var older <-chan got
					if batch {
						older = goGetMany(t.Context(), c, "k")
					} else {
						older = goGet(t.Context(), c, "k")
					}
					<-reached

					require.NoError(t, write.call(t.Context(), c, s, "k", "new"))
					newer := goGet(t.Context(), c, "k")
					synctest.Wait()
					select {
					case g := <-newer:
						require.NoError(t, g.err)
						require.Equal(t, "new", g.value)
					default:
						resume()
						t.Fatalf("a Get that began after %s waits for the older load", write.name)
					}
					resume()
					g := <-older
					require.NoError(t, g.err)
					require.Equal(t, "old", g.value, "who waited for the old load gets a real value")
					synctest.Wait()
					wantValue(t, c, "k", "new")
				})
			})
		}
	}
}

// goGetMany is goGet by GetMany of one key.
func goGetMany(ctx context.Context, c cacheOfStrings, key string) <-chan got {
	ended := make(chan got, 1)
	go func() {
		rows, err := c.GetMany(ctx, []string{key})
		ended <- got{rows[key], err, time.Now()}
	}()
	return ended
}

func TestLoadBegunBeforeAWriteIsNotKeptIfNobodyReadBetween(t *testing.T) {
	// P2: as above, but no newer entry stands when the old load ends: the mark alone keeps it out.
	for _, write := range theWrites {
		t.Run(write.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSource(map[string]string{"k": "old"})
				reached, resume := s.overtaken()
				c := openAlone(t, s, nil)
				older := goGet(t.Context(), c, "k")
				<-reached
				require.NoError(t, write.call(t.Context(), c, s, "k", "new"))
				resume()
				<-older
				wantValue(t, c, "k", "new")
			})
		})
	}
}

func TestFlightBegunInsideInvalidateIsNeitherKeptNorJoined(t *testing.T) {
	// P3: 1 Invalidate(a, b) is at a; 2 a Get of b begins and reads a lagging replica; 3 Invalidate goes on to b and returns; 4 a Get of b
	// begins: it must not join the flight of 2, whose value must not be kept.
	synctest.Test(t, func(t *testing.T) {
		s := newSource(map[string]string{"a": "old", "b": "old"})
		reached, resume := s.overtaken()
		defer resume()
		var c cacheOfStrings
		var inside <-chan got
		var once sync.Once
		c = openAlone(t, s, func(o *tiercache.Options[string, string]) {
			o.Hooks = &tiercache.Hooks{Invalidated: func(uint64, bool) {
				once.Do(func() {
					inside = goGet(t.Context(), c, "b")
					<-reached
				})
			}}
		})
		require.NoError(t, c.Invalidate(t.Context(), "a", "b"))
		s.write("b", "new")
		after := goGet(t.Context(), c, "b")
		synctest.Wait()
		select {
		case g := <-after:
			require.NoError(t, g.err)
			require.Equal(t, "new", g.value)
		default:
			resume()
			t.Fatal("a Get that began after Invalidate waits for the flight begun inside it")
		}
		resume()
		require.Equal(t, "old", (<-inside).value)
		wantValue(t, c, "b", "new")
	})
}

func TestLoadBegunInsideUpdateIsNotAnsweredAfterIt(t *testing.T) {
	// P2, P3: what is loaded while Update's write runs is answered and kept meanwhile, and gone when Update has returned.
	synctest.Test(t, func(t *testing.T) {
		s := newSource(map[string]string{"k": "old"})
		c := openAlone(t, s, nil)
		wantValue(t, c, "k", "old")
		require.NoError(t, c.Update(t.Context(), "k", func(context.Context) error {
			wantValue(t, c, "k", "old")
			wantValue(t, c, "k", "old")
			require.EqualValues(t, 2, s.loads.Load(), "the first delete came before the write; the load inside it is kept")
			s.write("k", "new")
			return nil
		}))
		wantValue(t, c, "k", "new")
	})
}

func TestWhatIsLoadedInsideTheDeleteWindowIsGoneByItsEnd(t *testing.T) {
	// P4 in one process: the delayed double delete. A lagging replica gives the old row after the delete; the cache keeps it no longer than
	// the window, without stale answers. Another key lives on.
	for _, write := range theWrites {
		if write.name == "Clear" {
			continue // opens no window
		}
		t.Run(write.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSource(map[string]string{"k": "old", "other": "v"})
				c := openAlone(t, s, func(o *tiercache.Options[string, string]) {
					o.DeleteWindow = 2 * time.Second
					o.TTLFor = func(_, value string) time.Duration {
						if value == "set" {
							return 100 * time.Millisecond // so that what Set keeps ends inside its window
						}
						return 0
					}
				})
				require.NoError(t, write.call(t.Context(), c, s, "k", "set"))
				s.write("k", "lagging")
				pass(1500 * time.Millisecond)
				_, _ = c.Get(t.Context(), "k")
				synctest.Wait()
				wantValue(t, c, "k", "lagging")
				wantValue(t, c, "other", "v")
				loads := s.loads.Load()
				s.write("k", "new")
				pass(500*time.Millisecond - 1)
				wantValue(t, c, "k", "lagging")
				require.Equal(t, loads, s.loads.Load(), "inside the window it is kept")
				pass(1)
				wantValue(t, c, "k", "new")
				wantValue(t, c, "other", "v")
				require.Equal(t, loads+1, s.loads.Load())
				pass(time.Minute)
				wantValue(t, c, "k", "new")
				require.Equal(t, loads+1, s.loads.Load(), "what was loaded after the window lives as ever")
			})
		})
	}
}

func TestLoadThatOutlastsTheDeleteWindowIsAnsweredAndNotKept(t *testing.T) {
	// P4: a load that began inside the window and ends after it may be as old as any inside it.
	synctest.Test(t, func(t *testing.T) {
		s := newSource(map[string]string{"k": "lagging"})
		c := openAlone(t, s, nil)
		require.NoError(t, c.Invalidate(t.Context(), "k"))
		reached, resume := s.overtaken()
		late := goGet(t.Context(), c, "k")
		<-reached
		pass(time.Second)
		s.write("k", "new")
		resume()
		require.Equal(t, "lagging", (<-late).value)
		wantValue(t, c, "k", "new")
	})
}

func TestWindowStaysOpenWhileTheWriteRuns(t *testing.T) {
	// P4: a write of half a minute with a window of a second: whenever in it a row is loaded, it is kept for a second and no longer; and for
	// a second after the end.
	synctest.Test(t, func(t *testing.T) {
		s := newSource(map[string]string{"k": "0"})
		c := openAlone(t, s, nil)
		require.NoError(t, c.Update(t.Context(), "k", func(context.Context) error {
			for i := range 10 {
				s.write("k", fmt.Sprint(i))
				wantValue(t, c, "k", fmt.Sprint(i))
				pass(time.Second - 1)
				s.write("k", "later")
				wantValue(t, c, "k", fmt.Sprint(i))
				pass(2 * time.Second)
			}
			return nil
		}))
		pass(900 * time.Millisecond)
		s.write("k", "lagging")
		wantValue(t, c, "k", "lagging")
		s.write("k", "new")
		pass(100 * time.Millisecond)
		wantValue(t, c, "k", "new")
	})
}

func TestSetIsVisibleToTheNextGet(t *testing.T) {
	// Read your writes: what Set kept is answered from memory by the next Get, over an older entry and over "not found", for its TTL.
	synctest.Test(t, func(t *testing.T) {
		s := newSource(map[string]string{"k": "old"})
		c := openAlone(t, s, func(o *tiercache.Options[string, string]) { o.TTL = time.Minute })
		wantValue(t, c, "k", "old")
		wantAbsent(t, c, "new")
		for i := range 1000 {
			want := fmt.Sprint("set ", i)
			require.NoError(t, c.Set(t.Context(), "k", want))
			wantValue(t, c, "k", want)
		}
		require.NoError(t, c.Set(t.Context(), "new", "set"))
		pass(time.Minute - 1)
		wantValue(t, c, "new", "set")
		wantValue(t, c, "k", "set 999")
		require.EqualValues(t, 2, s.loads.Load())
	})
}

func TestSetInsideAnothersDeleteWindowEndsWithIt(t *testing.T) {
	// P2: a Set inside the window that somebody else's write opened may carry an older row: it ends with that window. Its own window, and
	// another Set's, do not shorten it.
	for _, write := range theWrites {
		if write.name == "Clear" {
			continue
		}
		t.Run(write.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSource(nil)
				c := openAlone(t, s, nil)
				require.NoError(t, write.call(t.Context(), c, s, "k", "new"))
				pass(400 * time.Millisecond)
				require.NoError(t, c.Set(t.Context(), "k", "set"))
				pass(600*time.Millisecond - 1)
				wantValue(t, c, "k", "set")
				pass(1)
				if write.name == "Set" {
					wantValue(t, c, "k", "set")
					return
				}
				wantValue(t, c, "k", "new")
			})
		})
	}
}

func TestSetOfAValueThatIsNotToBeStoredInvalidates(t *testing.T) {
	// TTLFor negative: Set keeps nothing, and what stood before is gone.
	synctest.Test(t, func(t *testing.T) {
		s := newSource(map[string]string{"k": "old"})
		c := openAlone(t, s, func(o *tiercache.Options[string, string]) {
			o.TTLFor = func(_, value string) time.Duration {
				if value == "private" {
					return -1
				}
				return 0
			}
		})
		wantValue(t, c, "k", "old")
		s.write("k", "private")
		require.NoError(t, c.Set(t.Context(), "k", "private"))
		wantValue(t, c, "k", "private")
		wantValue(t, c, "k", "private")
		require.EqualValues(t, 3, s.loads.Load())
	})
}

func TestNotFoundIsKeptAndRemovedByEveryWrite(t *testing.T) {
	// P6: "not found" is a result: answered from memory, and gone with any write that may have made the row.
	for _, write := range theWrites {
		t.Run(write.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSource(nil)
				c := openAlone(t, s, nil)
				for range 3 {
					wantAbsent(t, c, "k")
				}
				_, err := c.GetEntry(t.Context(), "k")
				require.ErrorIs(t, err, tiercache.ErrNotFound)
				require.EqualValues(t, 1, s.loads.Load())
				require.EqualValues(t, 3, c.Stats().AbsentHits)
				require.Zero(t, c.Stats().LoadErrors)
				require.NoError(t, write.call(t.Context(), c, s, "k", "new"))
				wantValue(t, c, "k", "new")
			})
		})
	}
}

func TestFilterAnswersAbsentKeysAndAnnounceOpensIt(t *testing.T) {
	// P6: with a filter built, keys in neither scan nor announcements are "not found" without a load, by Get and by GetMany; that answer is
	// kept nowhere; unbuilt, and after an error of the scan, everything passes; after Announce the row is found.
	synctest.Test(t, func(t *testing.T) {
		s := newSource(map[string]string{"k": "v", "l": "v"})
		c := openAlone(t, s, func(o *tiercache.Options[string, string]) {
			o.Filter, o.FilterAudit = bloom.Options{Capacity: 1000}, -1
		})
		wantAbsent(t, c, "unbuilt")
		require.EqualValues(t, 1, s.loads.Load())

		_, err := c.BuildFilter(t.Context(), func(yield func(string, error) bool) {
			_ = yield("k", nil) && yield("", errDown)
		}, bloom.BuildOptions{})
		require.ErrorIs(t, err, errDown)
		wantValue(t, c, "l", "v")

		report, err := c.BuildFilter(t.Context(), func(yield func(string, error) bool) {
			_ = yield("k", nil) && yield("l", nil)
		}, bloom.BuildOptions{})
		require.NoError(t, err)
		require.EqualValues(t, 2, report.Rows)
		loads := s.loads.Load()
		entries := c.Stats().MemoryEntries
		for range 3 {
			wantAbsent(t, c, "none")
		}
		require.Equal(t, loads, s.loads.Load(), "loads by Get")
		require.EqualValues(t, 3, c.Stats().Filtered)
		require.Equal(t, entries, c.Stats().MemoryEntries)
		wantValue(t, c, "k", "v")
		loads = s.loads.Load()
		rows, err := c.GetMany(t.Context(), []string{"k", "none", "never"})
		require.NoError(t, err)
		require.Equal(t, map[string]string{"k": "v"}, rows)

		require.NoError(t, c.Announce(t.Context(), "none"))
		s.write("none", "there")
		wantValue(t, c, "none", "there")
		require.Equal(t, loads+1, s.loads.Load(), "loads by GetMany and after Announce")
	})
}

func TestUpdateReturnsTheWritesErrorAndEndsAllTheSame(t *testing.T) {
	// Whatever becomes of write, the second delete is done, for it may have committed: after an error, which is returned; a panic, which goes
	// on with its value; Goexit; and with a context that has ended. The write gets the caller's context.
	refused := errors.New("serialization failure")
	for _, test := range []struct {
		name  string
		end   func() error
		error error
		panic any
	}{
		{"returns nil", func() error { return nil }, nil, nil},
		{"returns an error", func() error { return refused }, refused, nil},
		{"panics", func() error { panic(refused) }, nil, refused},
		{"ends its goroutine", func() error { runtime.Goexit(); return nil }, nil, nil},
	} {
		for _, dead := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, dead=%v", test.name, dead), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := newSource(map[string]string{"k": "old", "l": "old"})
					c := openAlone(t, s, nil)
					_, err := c.GetMany(t.Context(), []string{"k", "l"})
					require.NoError(t, err)
					ctx, cancel := context.WithCancel(context.WithValue(t.Context(), inContext{}, "mine"))
					defer cancel()
					if dead {
						cancel()
					}
					var raised, value any
					var order []uint64
					done := make(chan struct{})
					go func() {
						defer close(done)
						defer func() { raised = recover() }()
						err = c.UpdateMany(ctx, []string{"k", "l"}, func(ctx context.Context) error {
							value = ctx.Value(inContext{})
							order = append(order, c.Stats().Invalidations)
							for _, key := range []string{"k", "l"} {
								_, _ = c.Get(t.Context(), key) // kept meanwhile
								s.write(key, "new")
							}
							return test.end()
						})
					}()
					<-done
					require.ErrorIs(t, err, test.error)
					require.Equal(t, test.panic, raised)
					require.Equal(t, "mine", value)
					require.Equal(t, []uint64{2}, order, "one write, after the first delete of both keys")
					require.EqualValues(t, 4, c.Stats().Invalidations)
					wantValue(t, c, "k", "new")
					wantValue(t, c, "l", "new")
				})
			})
		}
	}
}
