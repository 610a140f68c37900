package layers

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/tiercache/tiercache/internal/rediskey"
)

const (
	// hotFleetWindow is how long what processes tell is added up: each tells once a second, so that two or three times fall into it, whenever
	// they tell. Chosen; not tuned.
	hotFleetWindow = 2 * time.Second
	// hotFleetKept bounds a window: 200 KiB at the longest keys. Chosen; not tuned.
	hotFleetKept = 1000
)

// HotRate is how often a key is read. ID is its string form, or HotName of it.
type HotRate struct {
	ID   string
	Rate float64 // reads a second
}

// HotName is what stands for id in Redis among the hot keys of the fleet: itself, or, if it is longer than 200 bytes, "%h" and its SHA-256 in
// hexadecimal.
func HotName(id string) string {
	if rediskey.Long(id) {
		return rediskey.Tag(id)
	}
	return id
}

// hotWindowKeys are where the hot keys stand: windows that take turns, of one slot.
func (s *Space) hotWindowKeys() []string {
	key := s.r.prefix + ":" + s.name + ":hot:{" + s.name + "}:"
	return []string{key + "0", key + "1"}
}

// TellHot adds the reads that this process had of some keys in the last second to those of the fleet, and returns the keys with a rate of least
// and more over all processes that tell, first the highest, at most most of them. It is to be called once a second at most: with nothing to tell
// it only asks, as often as one likes. One round trip of one slot, within the WriteTimeout. Redis forgets what was told after four
// seconds, and keeps the 1,000 keys that are read most.
//
// The rates are of the last whole two seconds, or of those under way where they are higher already: right for many processes, within a half for
// one.
func (s *Space) TellHot(ctx context.Context, told []HotRate, least float64, most int) ([]HotRate, error) {
	perWindow := hotFleetWindow.Seconds()
	args := []any{hotFleetWindow.Milliseconds(), hotFleetKept, max(least, 0) * perWindow, most}
	for _, k := range told {
		args = append(args, HotName(k.ID), k.Rate)
	}
	call := &scriptCall{script: hotScript, keys: s.hotWindowKeys(), args: args}
	s.r.eval(ctx, call)
	a, err := call.read()
	if err != nil {
		return nil, err
	}
	rates := map[string]float64{}
	for i := 2; i <= 3; i++ {
		if err := hotScores(&a, i, rates); err != nil {
			return nil, err
		}
	}
	fleet := make([]HotRate, 0, len(rates))
	for name, score := range rates {
		fleet = append(fleet, HotRate{name, score / perWindow})
	}
	slices.SortFunc(fleet, func(a, b HotRate) int { return cmp.Or(cmp.Compare(b.Rate, a.Rate), cmp.Compare(a.ID, b.ID)) })
	return fleet[:min(most, len(fleet))], nil
}

// hotScores notes the members and scores of a reply's field where they are higher than what is there.
func hotScores(a *scriptReply, field int, scores map[string]float64) error {
	if field >= len(a.fields) {
		return fmt.Errorf("layers: the script hot answered %d fields", len(a.fields))
	}
	pairs, _ := a.fields[field].([]any)
	for i := 0; i+1 < len(pairs); i += 2 {
		name, _ := pairs[i].(string)
		score, err := strconv.ParseFloat(fmt.Sprint(pairs[i+1]), 64)
		if err != nil {
			return fmt.Errorf("layers: the script hot answered the score %v: %w", pairs[i+1], err)
		}
		scores[name] = max(scores[name], score)
	}
	return nil
}
