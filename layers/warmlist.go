package layers

import (
	"context"
	_ "embed"
	"fmt"
	"math"
	"time"

	"github.com/tiercache/tiercache/internal/borrowed"
)

// What Redis holds of a name's warm list: one sorted set of string forms, which the processes of the fleet write together. A score is a moment, of
// the server's clock, plus warmListHalf for each doubling of the key's rate: a key that is read twice as often as another stands where the
// other would if it were read half an hour later. So scores of different times and processes compare without being touched again.
const (
	// warmListHalf is how long ago a key has been read for one that is read half as often now to come before it. Chosen; not tuned: short
	// enough for the day's course, and long enough that a quiet hour does not displace what the busy ones need.
	warmListHalf = time.Hour
	// warmListLife is how long the list outlives the last process that wrote it, as the filter does, and a key's note the reads that it tells
	// of, where those were once a second: half a day less for a few a day, half a day more for thousands a second.
	warmListLife = 24 * time.Hour
	// warmListWorth bounds what a rate is worth: 2^40 reads a second are none of anybody's. What stands above it in Redis is no note of ours.
	warmListWorth = 40 * warmListHalf
	// warmListKeyBytes bounds a key of the list, so that the list is bounded in bytes. Longer keys are left out. Chosen; not tuned.
	warmListKeyBytes = 1 << 10
)

//go:embed lua/warmlist.lua
var warmListSource string

var warmListScript = borrowed.NewScript("warmlist", guardSource+warmListSource)

// WarmKey is a key of the warm list: its string form, and how often it is read.
type WarmKey struct {
	ID   string
	Rate float64 // reads a second, above 0
}

func (s *Space) warmListKey() string { return s.r.prefix + ":" + s.name + ":warm" }

// NoteWarmKeys adds keys to the list of those worth warming, of which the most that count most stay, whoever noted them: how often a key was
// read counts half after an hour, and what was noted more than a day ago is gone sooner or later. Keys over 1 KiB are left out. The list ends a
// day after the last call. One round trip; it may be sent again.
func (s *Space) NoteWarmKeys(ctx context.Context, most int, keys []WarmKey) error {
	args := make([]any, 0, 3+2*len(keys))
	args = append(args, most, warmListLife.Milliseconds(), warmListWorth.Milliseconds())
	for _, k := range keys {
		if len(k.ID) <= warmListKeyBytes {
			args = append(args, worthOf(k.Rate), k.ID)
		}
	}
	call := &scriptCall{script: warmListScript, keys: []string{s.warmListKey()}, args: args}
	s.r.eval(ctx, call)
	if _, err := call.read(); err != nil {
		return fmt.Errorf("layers: writing the warm list: %w", err)
	}
	return nil
}

// worthOf is what a rate is worth, in milliseconds of a score.
func worthOf(rate float64) int64 {
	doublings := min(max(math.Log2(rate), -40), 40)
	return int64(doublings * float64(warmListHalf.Milliseconds()))
}

// WarmKeys returns the most keys of the list that count most, first the most; none where there is no list. It is an error if something else
// stands in the list's place. One round trip.
func (s *Space) WarmKeys(ctx context.Context, most int) (ids []string, err error) {
	call := plainCall(s.warmListKey(), "zrange", 0, most-1, "rev")
	s.r.eval(ctx, call)
	if call.err != nil {
		return nil, fmt.Errorf("layers: reading the warm list: %w", call.err)
	}
	reply, _ := call.reply.([]any)
	for _, id := range reply {
		if text, ok := id.(string); ok {
			ids = append(ids, text)
		}
	}
	return ids, nil
}
