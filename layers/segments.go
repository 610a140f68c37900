package layers

import (
	"context"
	_ "embed"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiercache/tiercache/internal/borrowed"
	"github.com/tiercache/tiercache/internal/segment"
)

// What Redis holds of a filter that is not in every process: segments, each a string in a slot of its own, and one head, which says of
// which filter they are asked. The head is in the slot of the stream of announcements: an announcement is appended and the head read at
// one moment, so whoever begins a build after that moment finds the announcement, and whoever announces after the build began finds the build.

// segmentsGrace is how long a filter that is not asked any more is still given the new rows: longer than a replica lags behind, for
// whoever takes over from a master that had not told it of the move. Chosen; not tuned.
const segmentsGrace = time.Minute

// maxSegmentEdits is how many edits travel in one round trip to a master: the budget of a script is for all of them. Chosen; not tuned.
const maxSegmentEdits = 64

var (
	//go:embed lua/segment.lua
	segmentSource string
	//go:embed lua/segments.lua
	segmentsSource string

	segmentScript  = borrowed.NewScript("segment", guardSource+segmentSource)
	segmentsScript = borrowed.NewScript("segments", guardSource+segmentsSource)
)

func (s *Space) segmentsHeadKey() string { return "{" + s.filterStreamKey() + "}:segments" }

func (s *Space) segmentKey(r segment.Ref) string {
	return s.filterKey() + ":" + r.Filter + ":" + strconv.Itoa(r.Number)
}

// AskSegments returns the bytes of the layout that is served, nil if none is, and the replies to asks, each nil where there is none: the
// key is of another type, its master could not be asked. All are read after the call began, by one round trip to each master concerned; it
// waits at most ReadTimeout of the Redis. With an error some replies are missing, with one of the head all are.
func (s *Space) AskSegments(ctx context.Context, asks []segment.Ask) (serving []byte, replies [][]int64, err error) {
	replies = make([][]int64, len(asks))
	calls := make([]*scriptCall, 0, 1+len(asks))
	calls = append(calls, plainCall(s.segmentsHeadKey(), "hget", "serving"))
	for _, a := range asks {
		args := make([]any, 0, len(a.Fields)/2*3)
		for f := range slices.Chunk(a.Fields, 2) {
			args = append(args, "get", f[0], f[1])
		}
		calls = append(calls, plainCall(s.segmentKey(a.Ref), "bitfield_ro", args...))
	}
	within, cancel := context.WithTimeout(ctx, s.r.readTimeout)
	defer cancel()
	s.r.eval(within, calls...)
	for i, c := range calls[1:] {
		if c.err != nil {
			err = c.err
		}
		replies[i] = integers(c.reply)
	}
	if calls[0].err != nil {
		return nil, make([][]int64, len(asks)), fmt.Errorf("layers: asking which filter is served: %w", foreignHead(calls[0].err))
	}
	if err != nil {
		err = fmt.Errorf("layers: asking the filter's segments: %w", err)
	}
	text, _ := calls[0].reply.(string)
	return []byte(text), replies, err
}

// plainCall is a command of one key that travels as a script does.
func plainCall(key, name string, args ...any) *scriptCall {
	return &scriptCall{keys: []string{key}, plain: append([]any{name, key}, args...)}
}

// integers is a reply of numbers; nil if it is none.
func integers(reply any) []int64 {
	fields, ok := reply.([]any)
	if !ok {
		return nil
	}
	numbers := make([]int64, len(fields))
	for i, f := range fields {
		n, ok := f.(int64)
		if !ok {
			return nil
		}
		numbers[i] = n
	}
	return numbers
}

// EditSegments makes the edits, in whatever order, and reports which were made. With an error, which is the first one's, it
// is unknown of some: all may be sent again. One round trip to each master concerned for every 64 edits.
func (s *Space) EditSegments(ctx context.Context, edits ...segment.Edit) (made []bool, err error) {
	made = make([]bool, 0, len(edits))
	for some := range slices.Chunk(edits, maxSegmentEdits) {
		calls := make([]*scriptCall, len(some))
		for i, e := range some {
			calls[i] = &scriptCall{script: segmentScript, keys: []string{s.segmentKey(e.Ref)}, args: editArgs(e)}
		}
		s.r.eval(ctx, calls...)
		for _, c := range calls {
			a, callErr := c.read()
			if callErr != nil && err == nil {
				err = fmt.Errorf("layers: changing a segment of the filter: %w", callErr)
			}
			made = append(made, callErr == nil && a.code == 1)
		}
		if err != nil {
			return append(made, make([]bool, len(edits)-len(made))...), err
		}
	}
	return made, nil
}

func editArgs(e segment.Edit) []any {
	make1 := 0
	if e.Make {
		make1 = 1
	}
	args := make([]any, 0, 4+2*len(e.If)+2*len(e.Put)+len(e.Bits))
	args = append(args, millis(e.Life), make1, len(e.If), len(e.Put))
	for _, at := range e.If {
		args = append(args, at.Offset, at.Bytes)
	}
	for _, at := range e.Put {
		args = append(args, at.Offset, at.Bytes)
	}
	for _, bit := range e.Bits {
		args = append(args, bit)
	}
	return args
}

// TurnSegments makes a turn of the head and returns how it stands then; made is false for one that is refused: a Begin or Resume where the builder is
// not the one that was read, a Resume with nothing left, a Leave, Move or Abandon of who does not build any more. One round trip; two for the first
// Feed. With an error it is unknown whether the turn was made; it may be repeated. The error matches segment.ErrForeign where something else stands there.
func (s *Space) TurnSegments(ctx context.Context, t segment.Turn) (h segment.Head, made bool, err error) {
	var value, other any = 0, t.Was
	event := ""
	switch t.How {
	case segment.Move:
		value, event = t.Rows, s.r.bus.event(s, eventFilter, "") // numbered: made only where it is sent
	case segment.Leave:
		value = t.Left
	case segment.Feed:
		began, known := s.fedClock.now()
		if !known {
			if _, _, err := s.TurnSegments(ctx, segment.Turn{}); err != nil {
				return h, false, err
			}
			began, _ = s.fedClock.now()
		}
		value, other = millis(t.Lag), began
	default:
	}
	call := &scriptCall{script: segmentsScript, keys: []string{s.segmentsHeadKey()}, args: []any{
		t.How.String(), t.Layout, t.Builder, value, filterLife.Milliseconds(), segmentsGrace.Milliseconds(), s.channel, event, other,
	}}
	s.r.eval(ctx, call)
	a, err := call.read()
	if err != nil {
		return segment.Head{}, false, fmt.Errorf("layers: %s a shared filter: %w", t.How, foreignHead(err))
	}
	s.fedClock.heard(a.now)
	number := func(i int) uint64 {
		n, _ := strconv.ParseUint(a.text(i), 10, 64)
		return n
	}
	moved := max(a.number(7), 0)
	return segment.Head{
		Serving: []byte(a.text(2)), Rows: number(3), Building: []byte(a.text(4)), Old: []byte(a.text(5)), Replaced: []byte(a.text(6)),
		Moved: uint64(moved), Age: span(max(a.now-moved, 0)), Builder: number(8), Left: []byte(a.text(9)),
		Fed: number(10), Lag: span(int64(min(number(11), math.MaxInt64))), //nolint:gosec // in its bounds
	}, a.code == 1, nil
}

// foreignHead is err, as segment.ErrForeign if it says that the key is of another type.
func foreignHead(err error) error {
	if strings.Contains(err.Error(), "WRONGTYPE") {
		return fmt.Errorf("%w (%w)", segment.ErrForeign, err)
	}
	return err
}

// CountSegment returns how many bits of the segment's bytes from first to last are set; 0 where there is none. One round trip.
func (s *Space) CountSegment(ctx context.Context, r segment.Ref, first, last int) (set uint64, err error) {
	call := plainCall(s.segmentKey(r), "bitcount", first, last)
	s.r.eval(ctx, call)
	if call.err != nil {
		return 0, fmt.Errorf("layers: looking at a segment of the filter: %w", call.err)
	}
	n, _ := call.reply.(int64)
	return uint64(max(n, 0)), nil //nolint:gosec // not negative
}

// AnnounceSegments adds ids to the announcements, as AppendAnnounced does, and returns the head as it stood at the moment of the last one.
func (s *Space) AnnounceSegments(ctx context.Context, ids ...string) (h segment.Head, err error) {
	var fields *redis.SliceCmd
	err = s.appendAnnounced(ctx, func(p redis.Pipeliner) { fields = p.HMGet(ctx, s.segmentsHeadKey(), "serving", "building", "old") }, ids...)
	if err != nil || fields == nil {
		return segment.Head{}, err
	}
	var layouts [3][]byte
	for i, f := range fields.Val() { // none where another type stands: then no process finds a filter there
		text, _ := f.(string)
		layouts[i] = []byte(text)
	}
	return segment.Head{Serving: layouts[0], Building: layouts[1], Old: layouts[2]}, nil
}
