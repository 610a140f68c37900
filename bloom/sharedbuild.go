package bloom

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/tiercache/tiercache/internal/segment"
)

const (
	// fillKeys is how many keys are collected before their bits are sent: about 1 MiB of offsets. Chosen; not tuned.
	fillKeys = 8192
	// openRenewed is how often the expiry of all segments is renewed at least while they are filled. Chosen: a quarter of openLife.
	openRenewed = openLife / 4
	// patience is how long a build that has begun goes on trying where Redis does not answer: longer than a failover takes. Chosen; not tuned.
	patience = 30 * time.Second
	// firstPause is the pause before the second attempt, doubled up to lastPause. Chosen; not tuned.
	firstPause = 50 * time.Millisecond
	lastPause  = time.Second
)

// Build makes a filter of all existing keys in Redis and has the fleet ask it; until then the one before stays in force, and it stays for
// good if the build fails. rows is as for [Guard.Build]. Of two builds in the fleet the one that began last wins, the other fails with
// ErrOvertaken. It holds 8,192 keys' bits at a time, whatever the filter's size.
//
// The races, beside the one of Announce:
//
//  1. The builder opens a segment and fills it. 2. Redis evicts it, or fails over to a replica that lacks the last bits. 3. The builder
//     calls it complete. Closed because each write to a segment says how many came before it and is made only where that stands.
//  1. Builder A is paused. 2. B builds and moves the fleet. 3. A moves it back. Closed because the head knows one filter being built: A's
//     is not it any more.
func (g *SharedGuard) Build(ctx context.Context, rows iter.Seq2[string, error], o BuildOptions) (BuildReport, error) {
	if err := o.check(rows != nil, true); err != nil {
		return BuildReport{}, err
	}
	return g.build(ctx, &scan{rows: rows, options: o})
}

func (g *SharedGuard) build(ctx context.Context, s *scan) (BuildReport, error) {
	if !g.building.CompareAndSwap(false, true) {
		return BuildReport{}, ErrBuilding
	}
	defer g.building.Store(false)
	f := &filling{scan: s, guard: g}
	err := s.run(ctx, f)
	if err != nil && f.began {
		err = f.abandon(context.WithoutCancel(ctx), err)
	}
	return s.report(), err
}

// filling is a filter whose segments are being filled.
type filling struct {
	*scan
	*Segmented
	guard  *SharedGuard
	raw    []byte
	began  bool // Redis knows of it, as far as we know
	sealed bool // some segments are

	builder uint64     // which one of this filter this is: see builderAfter
	bits    [][]uint64 // by segment, not sent yet
	keys    int        // whose bits those are
	written []uint64   // by segment: what stands in its tail, which grows with each write that Redis acknowledged
	renewed time.Time
}

// fill makes f fill a filter of that layout.
func (f *filling) fill(layout *Segmented, raw []byte, builder uint64) {
	n := layout.Segments()
	f.Segmented, f.raw, f.builder, f.sealed = layout, raw, builder, false
	f.bits, f.keys, f.written = make([][]uint64, n), 0, make([]uint64, n)
	for i := range f.written {
		f.written[i] = firstTail(builder)
	}
	f.renewed = time.Now()
}

// firstTail is what stands in the tail of a segment that this builder has not written to yet: more than any before it has written.
func firstTail(builder uint64) uint64 { return builder << 32 }

// builderAfter is who builds after the builder was, 0 for none: how many have taken over, in the upper half of 32 bits, and a random number, in case a
// failover takes back what the head knew of one of them.
func builderAfter(was uint64) uint64 {
	const random = 1 << 16
	return (was/random+1)*random + rand.Uint64N(random) //nolint:gosec // so that two differ; nothing secret depends on it
}

// beginTries is how often a build begins where others begin at the same time. Chosen; not tuned.
const beginTries = 10

// begin makes the segments, then has everyone who announces give them the new rows, and then reads what was announced before that.
func (f *filling) begin(ctx context.Context) error {
	layout, err := NewSegmented(f.guard.options)
	if err != nil {
		return err
	}
	raw, err := layout.MarshalBinary()
	if err != nil {
		return err
	}
	f.fill(layout, raw, builderAfter(0))
	f.began = true
	edits := make([]segment.Edit, f.Segments())
	for n := range edits {
		edits[n] = segment.Edit{Ref: f.ref(n), Make: true, Put: f.filled(n, f.written[n]), Life: openLife}
	}
	made, err := f.guard.store.EditSegments(ctx, edits...)
	if err == nil {
		err = allMade(edits, made)
	}
	if err != nil {
		return fmt.Errorf("bloom: beginning a build: %w", err)
	}
	if err := f.enter(ctx); err != nil {
		return fmt.Errorf("bloom: beginning a build: %w", err)
	}
	return f.recall(ctx)
}

// enter makes the filter the one that is being built, in the place of what it has read there: a call that comes late takes nobody's.
func (f *filling) enter(ctx context.Context) error {
	for range beginTries {
		head, _, err := f.guard.store.TurnSegments(ctx, segment.Turn{})
		if err != nil && !errors.Is(err, segment.ErrForeign) {
			return err
		}
		head, made, err := f.guard.store.TurnSegments(ctx, segment.Turn{How: segment.Begin, Layout: f.raw, Builder: f.builder, Was: head.Builder})
		if err != nil {
			return err
		}
		if made {
			return f.guard.expire(ctx, head.Replaced, 0)
		}
	}
	return ErrOvertaken
}

// recall adds what was announced within reach before now.
func (f *filling) recall(ctx context.Context) error {
	reach := f.scan.options.reach()
	cursor, _, whole, err := f.guard.store.BeginFilter(ctx, reach)
	for err == nil && whole {
		var keys []string
		var end bool
		if keys, _, cursor, end, whole, err = announcedUntil(ctx, f.guard.store, cursor); err != nil || !whole {
			break
		}
		for _, key := range keys {
			if err := f.add(ctx, key); err != nil {
				return err
			}
		}
		if end {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("bloom: beginning a build: %w", err)
	}
	return fmt.Errorf("%w: more came in the last %v than the store keeps, or Redis lost some", ErrBehind, reach)
}

func (f *filling) add(ctx context.Context, key string) error {
	q := f.Question(key)
	f.bits[q.Segment] = append(f.bits[q.Segment], q.Bits...)
	if f.keys++; f.keys < fillKeys {
		return nil
	}
	return f.flush(ctx)
}

// flush sends the bits collected.
func (f *filling) flush(ctx context.Context) error {
	var edits []segment.Edit
	for n, bits := range f.bits {
		if len(bits) > 0 {
			edits = append(edits, segment.Edit{
				Ref: f.ref(n), If: f.filled(n, f.written[n]), Put: f.filled(n, f.written[n]+1)[1:], Bits: bits, Life: openLife,
			})
		}
	}
	if err := f.edit(ctx, edits); err != nil {
		return err
	}
	for _, e := range edits {
		f.written[e.Number]++
		f.bits[e.Number] = f.bits[e.Number][:0]
	}
	f.keys = 0
	return nil
}

// tend looks whether this is still the filter that is being built, by this builder, and keeps segments that got no bits for long from expiring.
func (f *filling) tend(ctx context.Context) error {
	head, _, err := f.guard.store.TurnSegments(ctx, segment.Turn{})
	if err != nil {
		return nil //nolint:nilerr // the next flush says it, if it lasts
	}
	if head.Builder != f.builder || !bytes.Equal(head.Building, f.raw) {
		return ErrOvertaken
	}
	if err := f.guard.expire(ctx, head.Replaced, 0); err != nil || time.Since(f.renewed) <= openRenewed {
		return nil //nolint:nilerr // as above
	}
	return f.level(ctx)
}

// level puts the same into the tails of all segments, more than stood in any, and renews their expiry.
func (f *filling) level(ctx context.Context) error {
	f.renewed = time.Now()
	level := slices.Max(f.written) + 1
	edits := make([]segment.Edit, f.Segments())
	for n := range edits {
		edits[n] = segment.Edit{Ref: f.ref(n), If: f.filled(n, f.written[n]), Put: f.filled(n, level)[1:], Life: openLife}
	}
	if err := f.edit(ctx, edits); err != nil {
		return err
	}
	for n := range f.written {
		f.written[n] = level
	}
	return nil
}

// finish seals the segments, tries them and moves the fleet.
func (f *filling) finish(ctx context.Context) error {
	if err := f.counted(); err != nil {
		return err
	}
	if err := f.flush(ctx); err != nil {
		return err
	}
	f.sealed = true
	edits := make([]segment.Edit, f.Segments())
	for n := range edits {
		edits[n] = segment.Edit{Ref: f.ref(n), If: f.filled(n, f.written[n]), Put: f.Segmented.sealed(n), Life: segmentLife}
	}
	if err := f.edit(ctx, edits); err != nil {
		return err
	}
	if err := f.tried(ctx); err != nil {
		return err
	}
	var head segment.Head
	made := false
	err := insist(ctx, func() (err error) {
		head, made, err = f.guard.store.TurnSegments(ctx, segment.Turn{How: segment.Move, Layout: f.raw, Builder: f.builder, Rows: f.count})
		return err
	})
	switch {
	case err != nil:
		return err
	case !made:
		return ErrOvertaken
	}
	f.guard.adopt(segment.Head{Serving: f.raw, Rows: f.count})
	_ = f.guard.expire(ctx, head.Old, oldLife) // they have an expiry in any case
	_ = f.guard.expire(ctx, head.Replaced, 0)
	return nil
}

// tried looks whether the segments that were sealed let the sample of the rows pass.
func (f *filling) tried(ctx context.Context) error {
	missing := 0
	for some := range slices.Chunk(f.sample, maxVolley) {
		questions, asks := f.questions(some)
		var replies [][]int64
		err := insist(ctx, func() (err error) {
			_, replies, err = f.guard.store.AskSegments(ctx, asks)
			return err
		})
		if err != nil {
			return fmt.Errorf("bloom: trying the filter: %w", err)
		}
		for i, q := range questions {
			switch q.Answer(replies[i]) {
			case Unknown:
				return fmt.Errorf("%w: number %d", ErrSegmentLost, q.Segment)
			case Absent:
				missing++
			case Perhaps:
			}
		}
	}
	if missing > 0 {
		return fmt.Errorf("%w: it lacks %d of its own rows", ErrImplausible, missing)
	}
	return nil
}

// abandon lets go of what was made so far, unless another build may go on with it. It returns why: segments of a build that was overtaken are not
// lost by Redis.
func (f *filling) abandon(ctx context.Context, why error) error {
	wrong := f.sealed || errors.Is(why, ErrSegmentLost) || errors.Is(why, ErrOvertaken) || errors.Is(why, ErrImplausible)
	if f.kept > 0 && !wrong {
		return why
	}
	head, ours, err := f.guard.store.TurnSegments(ctx, segment.Turn{How: segment.Abandon, Layout: f.raw, Builder: f.builder})
	if err != nil {
		return why // what there is expires
	}
	if !bytes.Equal(head.Building, f.raw) && !bytes.Equal(head.Serving, f.raw) && !bytes.Equal(head.Old, f.raw) { // else somebody took over
		_ = f.guard.expire(ctx, f.raw, 0) // as above
	}
	if errors.Is(why, ErrSegmentLost) && !ours {
		return fmt.Errorf("%w (%w)", ErrOvertaken, why)
	}
	return why
}

// edit makes the edits, however long Redis is away within patience.
func (f *filling) edit(ctx context.Context, edits []segment.Edit) error {
	return insist(ctx, func() error {
		made, err := f.guard.store.EditSegments(ctx, edits...)
		if err != nil {
			return err
		}
		return allMade(edits, made)
	})
}

// allMade returns an error that wraps ErrSegmentLost if an edit was not made.
func allMade(edits []segment.Edit, made []bool) error {
	for i, ok := range made {
		if !ok {
			return fmt.Errorf("%w: number %d", ErrSegmentLost, edits[i].Number)
		}
	}
	return nil
}

// filled is what stands in a segment that is being filled: the head that Open gives, and a number in the tail's place.
func (s *Segmented) filled(n int, written uint64) []segment.At {
	return []segment.At{
		{Offset: 0, Bytes: s.Open(n)},
		{Offset: s.SegmentBytes() - segmentTail, Bytes: binary.BigEndian.AppendUint64(nil, written)},
	}
}

// insist runs f until it succeeds, says that something is lost, or patience is over.
func insist(ctx context.Context, f func() error) error {
	until := time.Now().Add(patience)
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		err := f()
		if err == nil || errors.Is(err, ErrSegmentLost) || ctx.Err() != nil || time.Now().After(until) {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}
