package bloom

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"
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
	return g.build(ctx, &scan{rows: rows, options: o}, st)
}

func (g *Guard) build(ctx context.Context, s *scan, st Store) (BuildReport, error) {
	if !g.building.CompareAndSwap(false, true) {
		return BuildReport{}, ErrBuilding
	}
	defer g.building.Store(false)
	b := &snapshotBuild{scan: s, guard: g, store: st}
	defer b.release()
	err := s.run(ctx, b)
	b.settle(ctx, err)
	return s.report(), err
}

// snapshotBuild makes a filter that is in every process.
type snapshotBuild struct {
	*scan
	guard   *Guard
	store   Store // nil: none
	builder *builder
	next    *belief // what the builder becomes
}

// begin begins at the beginning.
func (b *snapshotBuild) begin(ctx context.Context) error {
	g := b.guard
	b.release()
	b.next = &belief{}
	if b.store != nil {
		cursor, generation, whole, err := b.store.BeginFilter(ctx, b.options.reach())
		if err != nil {
			return fmt.Errorf("bloom: beginning a build: %w", err)
		}
		if !whole {
			return fmt.Errorf("%w: more came in the last %v than the store keeps; build when fewer come", ErrBehind, b.options.reach())
		}
		b.next.cursor, b.next.generation = cursor, generation
	}
	b.builder = newBuilder(g.options)
	if whole := g.receive(b.builder); b.store == nil && !whole {
		return fmt.Errorf("%w: more than %d came in the last %v; build when fewer come", ErrBehind, maxLog, Reach)
	}
	return nil
}

// release ends the part that announcements have in what was being built.
func (b *snapshotBuild) release() {
	b.guard.dismiss(b.builder)
	if b.next != nil {
		b.guard.dismiss(b.next.filter)
	}
}

func (b *snapshotBuild) add(_ context.Context, key string) error {
	b.builder.Add(key)
	return nil
}

// tend reads the announcements, so that a long scan does not fall behind what the store keeps.
func (b *snapshotBuild) tend(ctx context.Context) error {
	if b.store == nil {
		return nil
	}
	return b.guard.follow(ctx, b.store, b.next, b.builder)
}

// finish makes a filter of what was built, stores it and believes it. It is stored first: only the store knows whether a newer one stands. The
// turn is taken only then, so that the filter in force is kept up to date meanwhile.
func (b *snapshotBuild) finish(ctx context.Context) error {
	g := b.guard
	if err := b.tend(ctx); err != nil {
		return err
	}
	b.complete()
	if err := b.plausible(); err != nil {
		return err
	}
	if b.store == nil {
		return g.believe(b.next)
	}
	stored, failed := b.store.SaveFilter(ctx, b.next.generation, b.next.cursor, b.next.filter.Snapshot())
	if failed == nil && !stored {
		return ErrSuperseded
	}
	if err := g.take(ctx); err != nil {
		return errors.Join(failed, err)
	}
	defer g.give()
	if failed == nil { // else the store would hardly answer, and what it has announced since comes with the next CatchUp
		if err := g.follow(ctx, b.store, b.next, b.next.filter); err != nil {
			return err
		}
	}
	if err := g.believe(b.next); err != nil {
		return errors.Join(failed, err)
	}
	if failed != nil {
		return errors.Join(errors.New("bloom: the filter is in force in this process, but the others cannot fetch it"), failed)
	}
	return nil
}

// complete makes the builder's bits a filter. Add goes into the bits until this moment, and to the filter from then on.
func (b *snapshotBuild) complete() {
	g := b.guard
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.incoming, b.builder)
	b.next.filter = b.builder.filter()
	g.incoming[b.next.filter] = struct{}{}
}
