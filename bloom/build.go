package bloom

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"
)

// During a scan, announcements are read from the store every followEvery, so that a long scan does not fall behind what the store
// keeps; the clock is looked at every clockEvery rows. Chosen; not tuned.
const (
	followEvery = 5 * time.Second
	clockEvery  = 64
	burst       = 100 * time.Millisecond // how far a limited scan may make up for its own slowness
	nap         = 10 * time.Millisecond  // a limited scan pauses when it is this far ahead, not at each row
)

// BuildReport is what a build did.
type BuildReport struct {
	Rows    uint64        // keys that the scan gave, repetitions included, and Resumed
	Resumed uint64        // of BuildFrom: rows of a build that was cut off, which were not read again
	Took    time.Duration // in all, storing the snapshot included
	Adopted bool          // of the cache's BuildFilter: another process built the filter that is believed here now; what was scanned here, if anything, is not used
}

// Build makes a filter of all existing keys and believes it; until then the one before stays in force, and it stays for good if
// the build fails. rows is a scan that sees at least every row committed before Build was called, in any order; it is begun after
// announcements are being collected. An error of a row ends the build with that error, the end of ctx with its; a scan that waits
// for the source must itself end with ctx. A second Build meanwhile fails with ErrBuilding.
//
// With a store the filter is first stored for the other processes. If a newer one stands there, ErrSuperseded says so and nothing has changed.
// If only the storing fails, the filter is in force in this process and the error says so. With st nil the filter knows this process's
// announcements only. ErrBehind means that announcements were lost while it was built, or shortly before.
//
// The race: 1. The scan passes the place of a row. 2. The row is announced and commits. 3. The new filter is believed. Closed by
// the order: the store is made to keep announcements; Add's reach the new filter; then the scan begins; then the store's
// announcements, from a Reach before the scan, are read until nothing more comes; then, at one moment, the filter is believed and
// Add goes to it instead. A row announced before all this whose insert commits behind the scan's back is among the announcements
// of the Reach, from the store's and from Add's own log. If Redis lost them just before the build, only that log has them:
// that is the limit.
func (g *Guard) Build(ctx context.Context, rows iter.Seq2[string, error], o BuildOptions, st Store) (BuildReport, error) {
	if err := o.check(rows != nil, st != nil); err != nil {
		return BuildReport{}, err
	}
	return g.build(ctx, &scan{rows: rows, options: o, store: st})
}

func (g *Guard) build(ctx context.Context, s *scan) (BuildReport, error) {
	if !g.building.CompareAndSwap(false, true) {
		return BuildReport{}, ErrBuilding
	}
	defer g.building.Store(false)
	s.guard, s.started = g, time.Now()
	defer s.release()
	resumed, err := s.resume(ctx)
	if err == nil {
		err = s.read(ctx, resumed)
	}
	if resumed && errors.Is(err, ErrPlace) {
		err = s.read(ctx, false)
	}
	if err == nil {
		err = s.finish(ctx)
	}
	s.settle(ctx, err)
	return BuildReport{Rows: s.count, Resumed: s.resumed, Took: time.Since(s.started)}, err
}

// scan is one build under way.
type scan struct {
	guard   *Guard
	store   Store // nil: none
	options BuildOptions
	rows    iter.Seq2[string, error] // or
	pages   Pages
	builder *builder
	next    *belief // what the builder becomes

	started  time.Time
	count    uint64    // rows done, those that were resumed included
	followed time.Time // when the store was last read
	due      time.Time // when the next row may be read
	sample   sample    // of the rows that were read here
	telling

	resumed uint64    // rows that an earlier build had done
	place   string    // in the source, behind what was read; of pages
	kept    uint64    // rows that the checkpoint in the store has
	keep    time.Time // when the next may be stored
}

// begin begins at the beginning.
func (s *scan) begin(ctx context.Context) error {
	g := s.guard
	s.release()
	s.next, s.count, s.resumed, s.place, s.kept, s.sample = &belief{}, 0, 0, "", 0, nil
	if s.store != nil {
		cursor, generation, whole, err := s.store.BeginFilter(ctx, s.options.reach())
		if err != nil {
			return fmt.Errorf("bloom: beginning a build: %w", err)
		}
		if !whole {
			return fmt.Errorf("%w: more came in the last %v than the store keeps; build when fewer come", ErrBehind, s.options.reach())
		}
		s.next.cursor, s.next.generation = cursor, generation
	}
	s.builder = newBuilder(g.options)
	if whole := g.receive(s.builder); s.store == nil && !whole {
		return fmt.Errorf("%w: more than %d came in the last %v; build when fewer come", ErrBehind, maxLog, Reach)
	}
	return nil
}

// release ends the part that announcements have in what was being built.
func (s *scan) release() {
	s.guard.dismiss(s.builder)
	if s.next != nil {
		s.guard.dismiss(s.next.filter)
	}
}

// reach is how far before the scan announcements are read.
func (o BuildOptions) reach() time.Duration { return max(Reach, o.ReplicaLag) }

// check says what is wrong with the arguments of Build.
func (o BuildOptions) check(rows, store bool) error {
	if !rows || o.RowsPerSecond < 0 || o.ReplicaLag < 0 || o.ReplicaLag > Reach && !store {
		return fmt.Errorf("bloom: Build needs rows (given: %t), RowsPerSecond of at least 0 (is %d), ReplicaLag of at least 0 (is %v), and without a store of at most %v",
			rows, o.RowsPerSecond, o.ReplicaLag, Reach)
	}
	return nil
}

// read reads the source to its end: from its beginning, unless the build was resumed.
func (s *scan) read(ctx context.Context, resumed bool) error {
	if !resumed {
		if err := s.begin(ctx); err != nil {
			return err
		}
	}
	s.followed, s.due = s.started, s.started
	if err := ctx.Err(); err != nil {
		return err
	}
	read := s.readRows
	if s.pages != nil {
		read = s.readPages
	}
	if err := read(ctx); err != nil {
		return err
	}
	s.tell(time.Now(), true)
	return ctx.Err()
}

func (s *scan) readRows(ctx context.Context) error {
	for key, err := range s.rows {
		if err != nil {
			return s.failed(err)
		}
		if err := s.row(ctx, key); err != nil {
			return err
		}
	}
	return nil
}

func (s *scan) failed(err error) error {
	return fmt.Errorf("bloom: building, after %d rows: %w", s.count, err)
}

func (s *scan) row(ctx context.Context, key string) error {
	s.builder.Add(key)
	s.count++
	s.sample.add(key, s.count-s.resumed)
	return s.between(ctx)
}

// between does what is due between two rows.
func (s *scan) between(ctx context.Context) error {
	limited := s.options.RowsPerSecond > 0
	told := s.options.Progress != nil || s.options.Report != nil
	if !limited && s.count%clockEvery != 0 && !told {
		return nil
	}
	now := time.Now()
	if told {
		s.tell(now, false)
	}
	if s.store != nil && now.Sub(s.followed) >= followEvery {
		s.followed = now
		if err := s.guard.follow(ctx, s.store, s.next, s.builder); err != nil {
			return err
		}
	}
	if limited {
		return s.pace(ctx, now)
	}
	return ctx.Err()
}

// pace waits until the next row may be read.
func (s *scan) pace(ctx context.Context, now time.Time) error {
	if earliest := now.Add(-burst); s.due.Before(earliest) {
		s.due = earliest
	}
	s.due = s.due.Add(time.Second / time.Duration(s.options.RowsPerSecond))
	ahead := s.due.Sub(now)
	if ahead < nap {
		return ctx.Err()
	}
	timer := time.NewTimer(ahead)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// finish makes a filter of what was built, stores it and believes it. It is stored first: only the store knows whether a newer one stands. The
// turn is taken only then, so that the filter in force is kept up to date meanwhile.
func (s *scan) finish(ctx context.Context) error {
	g := s.guard
	if s.store != nil {
		if err := g.follow(ctx, s.store, s.next, s.builder); err != nil {
			return err
		}
	}
	g.complete(s)
	if err := s.plausible(); err != nil {
		return err
	}
	if s.store == nil {
		return g.believe(s.next)
	}
	stored, failed := s.store.SaveFilter(ctx, s.next.generation, s.next.cursor, s.next.filter.Snapshot())
	if failed == nil && !stored {
		return ErrSuperseded
	}
	if err := g.take(ctx); err != nil {
		return errors.Join(failed, err)
	}
	defer g.give()
	if failed == nil { // else the store would hardly answer, and what it has announced since comes with the next CatchUp
		if err := g.follow(ctx, s.store, s.next, s.next.filter); err != nil {
			return err
		}
	}
	if err := g.believe(s.next); err != nil {
		return errors.Join(failed, err)
	}
	if failed != nil {
		return errors.Join(errors.New("bloom: the filter is in force in this process, but the others cannot fetch it"), failed)
	}
	return nil
}

// complete makes the builder's bits a filter. Add goes into the bits until this moment, and to the filter from then on.
func (g *Guard) complete(s *scan) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.incoming, s.builder)
	s.next.filter = s.builder.filter()
	g.incoming[s.next.filter] = struct{}{}
}
