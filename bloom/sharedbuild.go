package bloom

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/tiercache/tiercache/internal/segment"
)

const (
	// fillKeys is how many keys are collected before their bits are sent: about 1 MiB of offsets. Chosen; not tuned.
	fillKeys = 8192
	// openRenewed is how often the expiry of all segments is renewed while they are filled. Chosen: a quarter of openLife.
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
	if !g.building.CompareAndSwap(false, true) {
		return BuildReport{}, ErrBuilding
	}
	defer g.building.Store(false)
	started := time.Now()
	f, err := newFilling(g)
	if err != nil {
		return BuildReport{}, err
	}
	s := &scan{options: o, started: started, due: started}
	if err = f.begin(ctx, o.reach()); err == nil {
		err = f.scan(ctx, rows, s)
	}
	if err == nil {
		err = s.counted()
	}
	if err == nil {
		err = f.finish(ctx, s.count)
	}
	if err != nil {
		err = f.abandon(context.WithoutCancel(ctx), err)
	}
	return BuildReport{Rows: s.count, Took: time.Since(started)}, err
}

// filling is a filter whose segments are being filled.
type filling struct {
	*Segmented
	guard *SharedGuard
	raw   []byte
	was   []byte // the layout that was served when the build began

	bits    [][]uint64 // by segment, not sent yet
	keys    int        // whose bits those are
	written []uint64   // by segment: writes that Redis acknowledged
	renewed time.Time
}

func newFilling(g *SharedGuard) (*filling, error) {
	layout, err := NewSegmented(g.options)
	if err != nil {
		return nil, err
	}
	raw, err := layout.MarshalBinary()
	if err != nil {
		return nil, err
	}
	return &filling{
		Segmented: layout, guard: g, raw: raw,
		bits: make([][]uint64, layout.Segments()), written: make([]uint64, layout.Segments()),
	}, nil
}

// begin makes the segments, then has everyone who announces give them the new rows, and then reads what was announced before that.
func (f *filling) begin(ctx context.Context, reach time.Duration) error {
	f.renewed = time.Now()
	edits := make([]segment.Edit, f.Segments())
	for n := range edits {
		edits[n] = segment.Edit{Ref: f.ref(n), Make: true, Put: f.filled(n, 0), Life: openLife}
	}
	made, err := f.guard.store.EditSegments(ctx, edits...)
	if err == nil {
		err = allMade(edits, made)
	}
	if err != nil {
		return fmt.Errorf("bloom: beginning a build: %w", err)
	}
	head, _, err := f.guard.store.TurnSegments(ctx, segment.Begin, f.raw, 0)
	if err != nil {
		return fmt.Errorf("bloom: beginning a build: %w", err)
	}
	f.was = head.Serving
	if err := f.guard.expire(ctx, head.Replaced, 0); err != nil {
		return fmt.Errorf("bloom: beginning a build: %w", err)
	}
	return f.recall(ctx, reach)
}

// recall adds what was announced within reach before now.
func (f *filling) recall(ctx context.Context, reach time.Duration) error {
	cursor, _, whole, err := f.guard.store.BeginFilter(ctx, reach)
	for err == nil && whole {
		var keys []string
		var next string
		if keys, _, next, whole, err = f.guard.store.Announced(ctx, cursor); err != nil || !whole {
			break
		}
		for _, key := range keys {
			if err := f.add(ctx, key); err != nil {
				return err
			}
		}
		if next == cursor {
			return nil
		}
		cursor = next
	}
	if err != nil {
		return fmt.Errorf("bloom: beginning a build: %w", err)
	}
	return fmt.Errorf("%w: more came in the last %v than the store keeps, or Redis lost some", ErrBehind, reach)
}

// scan adds the rows; s counts them and keeps their pace.
func (f *filling) scan(ctx context.Context, rows iter.Seq2[string, error], s *scan) error {
	for key, err := range rows {
		if err == nil {
			err = f.add(ctx, key)
		}
		if err != nil {
			return fmt.Errorf("bloom: building, after %d rows: %w", s.count, err)
		}
		s.count++
		if err := s.between(ctx); err != nil {
			return err
		}
		if s.count%clockEvery == 0 && time.Since(f.renewed) > openRenewed {
			if err := f.renew(ctx); err != nil {
				return err
			}
		}
	}
	s.tell(time.Now(), true)
	return ctx.Err()
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

// renew keeps segments that got no bits for long from expiring.
func (f *filling) renew(ctx context.Context) error {
	f.renewed = time.Now()
	edits := make([]segment.Edit, f.Segments())
	for n := range edits {
		edits[n] = segment.Edit{Ref: f.ref(n), If: f.filled(n, f.written[n]), Life: openLife}
	}
	return f.edit(ctx, edits)
}

// finish seals the segments and moves the fleet.
func (f *filling) finish(ctx context.Context, rows uint64) error {
	if err := f.flush(ctx); err != nil {
		return err
	}
	edits := make([]segment.Edit, f.Segments())
	for n := range edits {
		edits[n] = segment.Edit{Ref: f.ref(n), If: f.filled(n, f.written[n]), Put: f.sealed(n), Life: segmentLife}
	}
	if err := f.edit(ctx, edits); err != nil {
		return err
	}
	var head segment.Head
	made := false
	err := insist(ctx, func() (err error) {
		head, made, err = f.guard.store.TurnSegments(ctx, segment.Move, f.raw, rows)
		return err
	})
	switch {
	case err != nil:
		return err
	case !made:
		return ErrOvertaken
	}
	f.guard.adopt(f.raw, rows)
	_ = f.guard.expire(ctx, head.Old, oldLife) // they have an expiry in any case
	_ = f.guard.expire(ctx, head.Replaced, 0)
	return nil
}

// abandon lets go of what was made so far. It returns why: segments of a build that was overtaken are not lost by Redis.
func (f *filling) abandon(ctx context.Context, why error) error {
	head, _, err := f.guard.store.TurnSegments(ctx, segment.Abandon, f.raw, 0)
	if err != nil {
		return why // what there is expires
	}
	_ = f.guard.expire(ctx, f.raw, 0) // as above
	if errors.Is(why, ErrSegmentLost) && (len(head.Building) > 0 || !bytes.Equal(head.Serving, f.was)) {
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

// filled is what stands in a segment that was written to so many times: the head that Open gives, and the number in the tail's place.
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
