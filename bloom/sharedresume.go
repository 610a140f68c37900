package bloom

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/tiercache/tiercache/internal/segment"
)

// takeOvers is how often a segment is asked for again whose earlier builder wrote to it meanwhile. Chosen: a builder that lost its lock has one
// write under way; not tuned.
const takeOvers = 5

// BuildFrom is Build from pages. Every BuildOptions.Checkpoint it leaves in Redis how far it came, and it goes on where one that was cut off, here or in
// another process, has left that, for an hour: the bits are in Redis as it is, and every row announced since has set its own there. It begins anew
// where that build was for other Options or a shorter ReplicaLag, another was begun since, the filter was doubted with DoubtAll, or a segment was lost.
//
// What is left says what stood in the tails of all segments then; who goes on takes over segments whose tails say as much, or more. The races:
//
//  1. Builder A leaves how far it came. 2. It writes on, and is cut off. 3. A segment fails over to a replica that lacks what A had acknowledged before
//  1. 4. B goes on. Closed because that tail says less: B begins anew.
//  1. A is paused and loses its lock. 2. B goes on from what A left. 3. A writes on, tells how far it came, moves the fleet, or gives up and takes
//     the segments away. Closed because the head counts builders: B is the next one, and A is refused there; and B has put its own number into
//     each tail before it reads a row, so A's writes are refused too. One of them that was under way meanwhile is met by B when it takes that
//     segment over: it looks again.
//  1. A is cut off. 2. A row is announced. 3. B goes on behind the row's place. Closed because what is being built stays in the head, whoever
//     does not live any more: the announcement has set the row's bits.
func (g *SharedGuard) BuildFrom(ctx context.Context, pages Pages, o BuildOptions) (BuildReport, error) {
	if err := o.check(pages != nil, true); err != nil {
		return BuildReport{}, err
	}
	return g.build(ctx, &scan{pages: pages, options: o})
}

// save leaves how far the scan came: what stands in the tails, in eight bytes, and the place.
func (f *filling) save(ctx context.Context) (stored bool, err error) {
	if err := f.flush(ctx); err != nil {
		return false, err
	}
	if err := f.level(ctx); err != nil {
		return false, err
	}
	left := f.appendPlace(binary.BigEndian.AppendUint64(nil, f.written[0]), 0)
	_, stored, err = f.guard.store.TurnSegments(ctx, segment.Turn{How: segment.Leave, Layout: f.raw, Builder: f.builder, Left: left})
	if err == nil && !stored {
		return false, ErrOvertaken
	}
	return err == nil, nil
}

func (f *filling) resume(ctx context.Context) (*checkpoint, error) {
	head, _, err := f.guard.store.TurnSegments(ctx, segment.Turn{})
	if err != nil && !errors.Is(err, segment.ErrForeign) {
		return nil, fmt.Errorf("bloom: looking for a checkpoint: %w", err)
	}
	if err := f.guard.expire(ctx, head.Replaced, 0); err != nil {
		return nil, fmt.Errorf("bloom: looking for a checkpoint: %w", err)
	}
	level, left := parsePlace(head.Left, false)
	if left == nil || len(level) != 8 || left.reach < f.scan.options.reach() {
		return nil, nil
	}
	layout, err := ParseSegmented(head.Building)
	if err != nil || layout.Options() != f.guard.options {
		return nil, nil //nolint:nilerr // of another release
	}
	f.fill(layout, head.Building, builderAfter(head.Builder))
	_, made, err := f.guard.store.TurnSegments(ctx, segment.Turn{How: segment.Resume, Layout: f.raw, Builder: f.builder, Was: head.Builder})
	if err != nil {
		return nil, fmt.Errorf("bloom: taking over a build: %w", err)
	}
	if !made {
		return nil, ErrOvertaken
	}
	f.began, f.kept = true, left.rows // kept: cut off from here on, it can still be gone on with
	whole, err := f.takeOver(ctx, binary.BigEndian.Uint64(level))
	if err != nil {
		return nil, fmt.Errorf("bloom: taking over a build: %w", err)
	}
	if !whole {
		return nil, nil
	}
	return left, nil
}

// takeOver puts this builder's number into the tails of all segments; it reports whether all are there and have at least what stood in them at level.
func (f *filling) takeOver(ctx context.Context, level uint64) (whole bool, err error) {
	todo := make([]int, f.Segments())
	for n := range todo {
		todo[n] = n
	}
	for range takeOvers {
		edits := make([]segment.Edit, 0, len(todo))
		for some := range slices.Chunk(todo, maxVolley) {
			tails, err := f.tails(ctx, some)
			if err != nil {
				return false, err
			}
			for i, n := range some {
				switch {
				case tails[i] < level:
					return false, nil
				case tails[i] > f.written[n]:
					return false, f.later(ctx)
				}
				edits = append(edits, segment.Edit{Ref: f.ref(n), If: f.filled(n, tails[i]), Put: f.filled(n, f.written[n])[1:], Life: openLife})
			}
		}
		made, err := f.guard.store.EditSegments(ctx, edits...)
		if err != nil {
			return false, err
		}
		todo = todo[:0]
		for i, ok := range made {
			if !ok {
				todo = append(todo, edits[i].Number)
			}
		}
		if len(todo) == 0 {
			return true, nil
		}
	}
	return false, nil
}

// later returns ErrOvertaken if a later builder has taken a segment, nil where the head knows of none: a failover took that back, and nobody may go on.
func (f *filling) later(ctx context.Context) error {
	head, _, err := f.guard.store.TurnSegments(ctx, segment.Turn{})
	if err == nil && head.Builder != f.builder {
		err = ErrOvertaken
	}
	return err
}

// tails is what stands in the tails of these segments, 0 where one is not there, or not open.
func (f *filling) tails(ctx context.Context, numbers []int) ([]uint64, error) {
	asks := make([]segment.Ask, len(numbers))
	for i, n := range numbers {
		asks[i] = segment.Ask{Ref: f.ref(n), Fields: []any{"i64", 0, "i64", 64, "i64", 8 * (f.SegmentBytes() - segmentTail)}}
	}
	var replies [][]int64
	err := insist(ctx, func() (err error) {
		_, replies, err = f.guard.store.AskSegments(ctx, asks)
		return err
	})
	tails := make([]uint64, len(numbers))
	for i, n := range numbers {
		//nolint:gosec // the same 64 bits
		if r := replies[i]; err == nil && len(r) == 3 && uint64(r[0]) == segmentMagic && uint64(r[1]) == f.stamp(n, stampOpen) {
			tails[i] = uint64(r[2])
		}
	}
	return tails, err
}
