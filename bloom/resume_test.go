package bloom

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// table is a source in pages: rows by number, of which any may be missing.
type table struct {
	rows   map[int]bool
	last   int // the greatest number
	size   int // rows of a page
	asked  []string
	before func(after int) error // each page; an error is the page's
}

func newTable(rows int) *table {
	t := &table{rows: map[int]bool{}, last: rows - 1, size: 10}
	for i := range rows {
		t.rows[i] = true
	}
	return t
}

func (t *table) pages(_ context.Context, after string) (keys []string, next string, err error) {
	t.asked = append(t.asked, after)
	time.Sleep(time.Millisecond)
	at := -1
	if after != "" {
		if at, err = strconv.Atoi(after); err != nil {
			return nil, "", fmt.Errorf("%q: %w", after, ErrPlace)
		}
	}
	if t.before != nil {
		if err := t.before(at); err != nil {
			return nil, "", err
		}
	}
	for i := at + 1; i <= min(at+t.size, t.last); i++ {
		if t.rows[i] {
			keys = append(keys, strconv.Itoa(i))
		}
	}
	if at+t.size >= t.last {
		return keys, "", nil
	}
	return keys, strconv.Itoa(at + t.size), nil
}

// cutAt has the source fail at the page behind after.
func (t *table) cutAt(after int) {
	t.before = func(at int) error {
		if at == after {
			return errCut
		}
		return nil
	}
}

var errCut = errors.New("connection lost")

// atEveryPage stores a checkpoint after each page, as far as none takes any time.
var atEveryPage = BuildOptions{Checkpoint: 1}

// left returns a store with the checkpoint of a build by another process that was cut off behind row after, of a source of 100 rows.
func left(t *testing.T, after int, o BuildOptions) (*memoryStore, *table) {
	t.Helper()
	st, source := &memoryStore{}, newTable(100)
	source.cutAt(after)
	_, err := newTestGuard(t).BuildFrom(t.Context(), source.pages, o, st)
	require.ErrorIs(t, err, errCut)
	require.NotNil(t, st.left.data)
	source.before, source.asked = nil, nil
	return st, source
}

func (t *table) requireAll(tb testing.TB, g *Guard) {
	tb.Helper()
	for i := range t.rows {
		require.False(tb, g.Absent(strconv.Itoa(i)), "row %d", i)
	}
	require.True(tb, g.Absent("none"))
}

// A build that was cut off is gone on with by another process: it asks for no page that is in the checkpoint, counts the rows before it, has all
// rows, and leaves no checkpoint. Without a store, and with a negative Checkpoint, it begins anew. Broken by: build without resume; settle
// without DropCheckpoint.
func TestBuildGoesOnWhereAnotherWasCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, source := left(t, 59, atEveryPage)
		g := newTestGuard(t)
		report, err := g.BuildFrom(t.Context(), source.pages, BuildOptions{Expected: 100}, st)
		require.NoError(t, err)
		require.Equal(t, []string{"59", "69", "79", "89"}, source.asked)
		require.EqualValues(t, 100, report.Rows)
		require.EqualValues(t, 60, report.Resumed)
		source.requireAll(t, g)
		require.Nil(t, st.left.data)
		require.Empty(t, g.incoming)
		other := newTestGuard(t)
		require.NoError(t, other.Adopt(t.Context(), st))
		source.requireAll(t, other)

		for name, c := range map[string]struct {
			st *memoryStore
			o  BuildOptions
		}{"no store": {nil, BuildOptions{}}, "never": {st, BuildOptions{Checkpoint: -1}}} {
			source.asked = nil
			var s Store
			if c.st != nil {
				s = c.st
				source.cutAt(59)
				_, err := g.BuildFrom(t.Context(), source.pages, atEveryPage, s)
				require.ErrorIs(t, err, errCut)
				source.before, source.asked = nil, nil
			}
			report, err := g.BuildFrom(t.Context(), source.pages, c.o, s)
			require.NoError(t, err, name)
			require.Empty(t, source.asked[0], name)
			require.Zero(t, report.Resumed, name)
			require.EqualValues(t, 100, report.Rows, name)
			source.requireAll(t, g)
		}
	})
}

// Race: 1. The scan passes the place of a row. 2. A checkpoint is stored. 3. The row is announced, by whichever process, and commits. 4. The builder
// dies, and another goes on behind the row's place. The row is in its filter.
func TestRowAnnouncedBetweenCheckpointAndResumeIsNotAbsent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, source := &memoryStore{}, newTable(100)
		delete(source.rows, 5)
		delete(source.rows, 6)
		a, b := newTestGuard(t), newTestGuard(t)
		source.before = func(at int) error {
			switch at {
			case 49:
				require.NotNil(t, st.left.data)
				st.announce("5") // by the builder itself
				a.Add("5")
				source.rows[5] = true
			case 59:
				return errCut
			}
			return nil
		}
		_, err := a.BuildFrom(t.Context(), source.pages, BuildOptions{Checkpoint: 4 * time.Millisecond}, st)
		require.ErrorIs(t, err, errCut)
		source.before = nil
		st.announce("6") // by a process that lives while nobody builds
		source.rows[6] = true
		time.Sleep(2 * Reach) // so that nobody's own log has either
		report, err := b.BuildFrom(t.Context(), source.pages, BuildOptions{}, st)
		require.NoError(t, err)
		require.EqualValues(t, 38, report.Resumed)
		source.requireAll(t, b)
	})
}

// What an earlier build has left is not gone on with, and the scan begins at the beginning, where announcements since are lost, a filter begun
// later stands, its own was doubted, it is for another size, for a shorter ReplicaLag, damaged, or of a place that the scan does not know. What is
// built then is right. Broken by: each of the looks of resume, wants, parseCheckpoint and LoadCheckpoint; build without its second read.
func TestCheckpointThatDoesNotFitIsNotGoneOnWith(t *testing.T) {
	usual := newTestGuard(t).options
	asLarge := Options{Capacity: usual.Capacity / 2, FalsePositiveRate: usual.FalsePositiveRate * usual.FalsePositiveRate}
	require.Equal(t, usual.size(), asLarge.size())
	for name, c := range map[string]struct {
		spoil func(t *testing.T, st *memoryStore, g *Guard, source *table)
		size  Options
		o     BuildOptions
	}{
		"trimmed": {spoil: func(_ *testing.T, st *memoryStore, _ *Guard, _ *table) {
			time.Sleep(time.Minute)
			st.announce("x", "y")
			st.trim(time.Second)
			time.Sleep(2 * Reach)
		}},
		"newer filter": {spoil: func(t *testing.T, st *memoryStore, _ *Guard, _ *table) {
			_, err := newTestGuard(t).Build(t.Context(), rowsOf("a"), BuildOptions{}, st)
			require.NoError(t, err)
		}},
		"doubted elsewhere": {spoil: func(t *testing.T, st *memoryStore, _ *Guard, _ *table) {
			_, err := st.SaveFilter(t.Context(), st.left.generation, "", nil)
			require.NoError(t, err)
		}},
		"doubted here":             {spoil: func(_ *testing.T, st *memoryStore, g *Guard, _ *table) { g.refused = st.left.generation }},
		"as large, for fewer rows": {size: asLarge},
		"larger":                   {size: Options{Capacity: 20_000, FalsePositiveRate: 1e-6}},
		"longer lag":               {o: BuildOptions{ReplicaLag: 2 * Reach}},
		"damaged bits":             {spoil: func(_ *testing.T, st *memoryStore, _ *Guard, _ *table) { st.left.data[snapshotHeader+5] ^= 1 }},
		"damaged rows":             {spoil: func(_ *testing.T, st *memoryStore, _ *Guard, _ *table) { st.left.data[len(st.left.data)-25] ^= 1 }},
		"cut short":                {spoil: func(_ *testing.T, st *memoryStore, _ *Guard, _ *table) { st.left.data = st.left.data[:20] }},
		"other place": {spoil: func(_ *testing.T, _ *memoryStore, _ *Guard, source *table) {
			source.before = func(at int) error {
				if at == 59 && len(source.asked) == 1 {
					return ErrPlace
				}
				return nil
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st, source := left(t, 59, atEveryPage)
				size := c.size
				if !size.Enabled() {
					size = newTestGuard(t).options
				}
				g, err := NewGuard(size)
				require.NoError(t, err)
				if c.spoil != nil {
					c.spoil(t, st, g, source)
				}
				report, err := g.BuildFrom(t.Context(), source.pages, c.o, st)
				require.NoError(t, err)
				require.Zero(t, report.Resumed)
				require.EqualValues(t, 100, report.Rows)
				require.True(t, slices.Contains(source.asked, ""), "from the beginning: %q", source.asked)
				source.requireAll(t, g)
				require.Empty(t, g.incoming)
			})
		})
	}
}

// A place that is refused where there was none is the scan's own mistake: it is not read a second time.
// Broken by: run without "left != nil".
func TestPlaceThatIsRefusedAtTheBeginningEndsTheBuild(t *testing.T) {
	source := newTable(100)
	source.before = func(int) error { return ErrPlace }
	_, err := newTestGuard(t).BuildFrom(t.Context(), source.pages, BuildOptions{}, &memoryStore{})
	require.ErrorIs(t, err, ErrPlace)
	require.Len(t, source.asked, 1)
}

// Race: 1. A stores a checkpoint. 2. A is paused; B goes on from there, stores later ones and is cut off. 3. A stores its next one, which is behind
// B's, and is cut off. 4. C goes on from A's. Its filter has every row, those announced at any of these moments included.
func TestCheckpointOfAPausedBuilderIsRightByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, source := &memoryStore{}, newTable(100)
		a, b, c := newTestGuard(t), newTestGuard(t), newTestGuard(t)
		announce := func(row int) {
			st.announce(strconv.Itoa(row))
			source.rows[row] = true
		}
		for _, row := range []int{1, 2, 3} {
			delete(source.rows, row)
		}
		other := *source
		other.rows = source.rows
		other.cutAt(79)
		source.before = func(at int) error {
			switch at {
			case 29:
				announce(1)
				_, err := b.BuildFrom(t.Context(), other.pages, atEveryPage, st)
				require.ErrorIs(t, err, errCut)
				announce(2)
			case 49:
				announce(3)
				return errCut
			}
			return nil
		}
		_, err := a.BuildFrom(t.Context(), source.pages, atEveryPage, st)
		require.ErrorIs(t, err, errCut)
		source.before = nil
		report, err := c.BuildFrom(t.Context(), source.pages, BuildOptions{}, st)
		require.NoError(t, err)
		require.EqualValues(t, 47, report.Resumed, "A's, which has not the three")
		source.requireAll(t, c)
	})
}

// Never a false negative, however often a build is cut off, by whichever of three processes it is gone on with, whatever is announced and
// inserted meanwhile, and whether the announcements, or all, are lost on the way. The seed of a failure is printed. Broken by: resume
// that goes on from the newest announcements where those of its cursor are lost.
func TestInsertedRowsAreNeverAbsentHoweverOftenABuildIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		resumed := 0
		for seed := range uint64(200) {
			random := rand.New(rand.NewPCG(seed, 0))
			st, source := &memoryStore{}, newTable(300)
			guards := []*Guard{newTestGuard(t), newTestGuard(t), newTestGuard(t)}
			for i := range source.rows {
				if random.IntN(4) == 0 {
					delete(source.rows, i)
				}
			}
			life := func() {
				time.Sleep(time.Duration(random.IntN(3000)) * time.Millisecond)
				for range random.IntN(3) {
					row := random.IntN(300)
					st.announce(strconv.Itoa(row))
					if by := random.IntN(4); by < 3 {
						guards[by].Add(strconv.Itoa(row))
					}
					source.rows[row] = true
				}
				if random.IntN(40) == 0 {
					st.trim(time.Duration(random.IntN(20)) * time.Second)
				}
				if random.IntN(200) == 0 {
					st.flush()
					time.Sleep(Reach) // what was under way then is committed by now: the limit of every build
				}
			}
			source.before = func(int) error {
				life()
				if random.IntN(15) == 0 {
					return errCut
				}
				return nil
			}
			for tries := 0; ; tries++ {
				g := guards[random.IntN(3)]
				report, err := g.BuildFrom(t.Context(), source.pages, BuildOptions{Checkpoint: time.Duration(1 + random.IntN(int(10*time.Second)))}, st)
				if report.Resumed > 0 {
					resumed++
				}
				if err != nil {
					require.Less(t, tries, 1000, "seed %d", seed)
					require.True(t, errors.Is(err, errCut) || errors.Is(err, ErrBehind), "seed %d: %v", seed, err)
					life()
					continue
				}
				for i := range source.rows {
					require.False(t, g.Absent(strconv.Itoa(i)), "seed %d, row %d", seed, i)
				}
				require.True(t, g.Absent("none"), "seed %d", seed)
				break
			}
		}
		require.Greater(t, resumed, 50)
	})
}

// Checkpoints come every 30 s by default, and where storing one takes long, so seldom that no more than a twentieth of the time goes into it; one that
// cannot be stored, or that a later build's stands in the way of, ends nothing. Broken by: checkpoint without checkpointShare.
func TestCheckpointsTakeNoMoreThanTheirShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for takes, every := range map[time.Duration]time.Duration{0: checkpointEvery, 10 * time.Second: 210 * time.Second} {
			st, source := &memoryStore{takes: takes}, newTable(10_000)
			source.before = func(int) error { time.Sleep(time.Second); return nil }
			g := newTestGuard(t)
			var kept []uint64
			_, err := g.BuildFrom(t.Context(), source.pages, BuildOptions{Report: func(p BuildProgress) { kept = append(kept, p.Kept) }}, st)
			require.NoError(t, err)
			require.GreaterOrEqual(t, len(st.saves), 4)
			for i, at := range st.saves[1:] {
				require.InDelta(t, every.Seconds(), at.Sub(st.saves[i]).Seconds(), 1.01, "checkpoint %d", i)
			}
			require.True(t, slices.IsSorted(kept))
			require.NotZero(t, kept[len(kept)-1])
			source.requireAll(t, g)

			saves := len(st.saves)
			source.before = func(at int) error {
				time.Sleep(time.Second)
				switch at {
				case 999:
					st.setFail(errCut)
				case 1299:
					st.setFail(nil)
					st.left = checkpointEntry{[]byte("another's"), 1 << 63, ""}
				}
				return nil
			}
			_, err = newTestGuard(t).BuildFrom(t.Context(), source.pages, BuildOptions{Checkpoint: 1}, st)
			if err != nil { // the announcements could not be read meanwhile either
				require.ErrorIs(t, err, errCut)
			}
			require.Greater(t, len(st.saves), saves)
		}
	})
}

// A scan that cannot be trusted is not gone on with: an implausible build leaves no checkpoint. Broken by: settle without ErrImplausible.
func TestImplausibleBuildLeavesNoCheckpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, source, g := &memoryStore{}, newTable(100), newTestGuard(t)
		o := atEveryPage
		o.Expected = 500
		_, err := g.BuildFrom(t.Context(), source.pages, o, st)
		require.ErrorIs(t, err, ErrImplausible)
		require.Nil(t, st.left.data)
		o.Expected = 100
		report, err := g.BuildFrom(t.Context(), source.pages, o, st)
		require.NoError(t, err)
		require.Zero(t, report.Resumed)
	})
}

// Pages that do not move, whose place is too long, or that fail, end the build; so do ErrPlace of a place that the build has from its own scan, the
// end of ctx, and nil pages. Broken by: after without each of its looks; with the place in its error.
func TestBuildFromRefusesWrongPages(t *testing.T) {
	g, st := newTestGuard(t), &memoryStore{}
	for want, pages := range map[string]Pages{
		"ends where it began": func(context.Context, string) ([]string, string, error) { return nil, "x", nil },
		"at most 1024": func(context.Context, string) ([]string, string, error) {
			return nil, string(make([]byte, maxPlace+1)), nil
		},
		"after 1 rows: bloom: the scan cannot go on": func(_ context.Context, after string) ([]string, string, error) {
			if after != "" {
				return nil, "", ErrPlace
			}
			return []string{"a"}, "a", nil
		},
	} {
		_, err := g.BuildFrom(t.Context(), pages, BuildOptions{}, st)
		require.ErrorContains(t, err, want)
	}
	// P12: a place may be a key, which no text of an error holds.
	_, err := g.BuildFrom(t.Context(), func(context.Context, string) ([]string, string, error) { return nil, "who@where", nil }, BuildOptions{}, st)
	require.NotContains(t, err.Error(), "who")
	_, err = g.BuildFrom(t.Context(), nil, BuildOptions{}, st)
	require.ErrorContains(t, err, "needs rows")
	ctx, cancel := context.WithCancel(t.Context())
	pages := 0
	_, err = g.BuildFrom(ctx, func(context.Context, string) ([]string, string, error) {
		pages++
		cancel()
		return nil, strconv.Itoa(pages), nil
	}, BuildOptions{}, st)
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, 1, pages)
	require.Equal(t, Unbuilt, g.State())
}

// Report tells how many rows are done, the rate of the last seconds, and how long the rest takes at it: rows that were resumed do not count for the rate.
// Broken by: tell without resumed; rateAt without rateOver.
func TestReportTellsRateAndRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, source := left(t, 59, atEveryPage)
		source.last, source.size = 599, 1
		for i := range 600 {
			source.rows[i] = true
		}
		pause := 9 * time.Millisecond // 100 rows a second, with the page's own
		source.before = func(int) error { time.Sleep(pause); return nil }
		var last BuildProgress
		var reports int
		o := BuildOptions{Expected: 600, Report: func(p BuildProgress) {
			reports++
			require.True(t, p.Rows == 600 || p.Took-last.Took >= progressEvery)
			last = p
			if p.Rows < 200 {
				require.InDelta(t, 100, p.Rate, 12)
				require.EqualValues(t, 60, p.Resumed)
				require.GreaterOrEqual(t, p.Kept, p.Resumed)
				require.InDelta(t, float64(600-p.Rows)/100, p.Left().Seconds(), 0.8)
			} else {
				pause = 999 * time.Millisecond // 1 row a second
			}
		}}
		_, err := newTestGuard(t).BuildFrom(t.Context(), source.pages, o, st)
		require.NoError(t, err)
		require.InDelta(t, 1, last.Rate, 0.1, "what was long ago does not count")
		require.Zero(t, last.Left())
		require.EqualValues(t, 600, last.Rows)
		require.EqualValues(t, 600, last.Expected)
		require.Greater(t, reports, 20)
	})
	require.EqualValues(t, -1, BuildProgress{Rows: 1, Rate: 1}.Left(), "none are expected")
	require.EqualValues(t, -1, BuildProgress{Rows: 1, Expected: 2}.Left(), "none come")
}

// A build that was resumed finds, some rows further, that the scan cannot go on from there, and begins anew: what Report tells is of the scan that runs.
// Broken by: read that leaves telling as it was.
func TestReportIsOfTheScanThatBeganAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, source := left(t, 39, atEveryPage)
		source.size = 1
		refused := false
		source.before = func(after int) error {
			time.Sleep(9 * time.Millisecond) // 100 rows a second, with the page's own
			if after != 79 || refused {
				return nil
			}
			refused = true
			return ErrPlace
		}
		anew := 0
		report, err := newTestGuard(t).BuildFrom(t.Context(), source.pages, BuildOptions{Expected: 100, Report: func(p BuildProgress) {
			if refused {
				anew++
				require.InDelta(t, 100, p.Rate, 12)
				require.InDelta(t, float64(100-p.Rows)/100, p.Left().Seconds(), 0.2)
			}
		}}, st)
		require.NoError(t, err)
		require.Zero(t, report.Resumed)
		require.EqualValues(t, 100, report.Rows)
		require.GreaterOrEqual(t, anew, 8)
	})
}
