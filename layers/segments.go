package layers

import (
	"context"
	_ "embed"
	"fmt"
	"slices"
	"strconv"
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
		return nil, make([][]int64, len(asks)), fmt.Errorf("layers: asking which filter is served: %w", calls[0].err)
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

// TurnSegments makes a turn of the head and returns how it stands then; made is false for a Move of a layout that is not the one
// being built. One round trip. With an error it is unknown whether the turn was made; it may be repeated.
func (s *Space) TurnSegments(ctx context.Context, turn segment.Turn, layout []byte, rows uint64) (h segment.Head, made bool, err error) {
	event := ""
	if turn == segment.Move {
		event = s.r.bus.event(s, eventFilter, "") // numbered: made only where it is sent
	}
	call := &scriptCall{script: segmentsScript, keys: []string{s.segmentsHeadKey()}, args: []any{
		turn.String(), layout, rows, filterLife.Milliseconds(), segmentsGrace.Milliseconds(), s.channel, event,
	}}
	s.r.eval(ctx, call)
	a, err := call.read()
	if err != nil {
		return segment.Head{}, false, fmt.Errorf("layers: %s a shared filter: %w", turn, err)
	}
	rows, _ = strconv.ParseUint(a.text(3), 10, 64)
	return segment.Head{
		Serving: []byte(a.text(2)), Rows: rows, Building: []byte(a.text(4)), Old: []byte(a.text(5)), Replaced: []byte(a.text(6)),
	}, a.code == 1, nil
}

// AnnounceSegments adds ids to the announcements, as AppendAnnounced does, and returns the head as it stood at the moment of the last one.
func (s *Space) AnnounceSegments(ctx context.Context, ids ...string) (h segment.Head, err error) {
	var fields *redis.MapStringStringCmd
	err = s.appendAnnounced(ctx, func(p redis.Pipeliner) { fields = p.HGetAll(ctx, s.segmentsHeadKey()) }, ids...)
	if err != nil || fields == nil {
		return segment.Head{}, err
	}
	f := fields.Val() // nothing where another type stands: then no process finds a filter there
	return segment.Head{Serving: []byte(f["serving"]), Building: []byte(f["building"]), Old: []byte(f["old"])}, nil
}
