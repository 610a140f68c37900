package layers

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiercache/tiercache/internal/borrowed"
)

// SaveFilter stores the snapshot of a filter of that generation, which holds every announcement up to cursor, and publishes the event that
// makes the other processes fetch it. A nil snapshot says instead that the filters up to that generation are doubted: the one that stands
// is taken away, and none of them is stored again. stored is false if a newer one stands: then nothing has changed.
//
// The snapshot takes the place of the one before at one moment, whole; it is sent in pieces of 1 MiB, each a round trip, to a key of its own,
// which a crash leaves to its expiry. Every command may be sent twice by the client, or late, without harm: a piece names its offset, and
// sets an expiry with itself.
func (s *Space) SaveFilter(ctx context.Context, generation uint64, cursor string, snapshot []byte) (stored bool, err error) {
	head := filterHead{generation: generation, doubted: snapshot == nil, cursor: cursor}
	if stored, err = s.filterSave(ctx, s.filterKey(), head, snapshot, filterLife); err != nil || !stored {
		return false, err
	}
	return true, s.filterDo(ctx, filterBudget, s.filterKey(), func(ctx context.Context) error {
		// Once: a second copy would carry the same number.
		if err := s.r.rdb.Process(ctx, borrowed.Once{Cmder: redis.NewIntCmd(ctx, "publish", s.channel, s.r.bus.event(s, eventFilter, ""))}); err != nil {
			return fmt.Errorf("layers: the filter is stored, but the event that says so was not sent: %w", err)
		}
		return nil
	})
}

// filterSave stores data behind head at place, unless something newer stands there.
func (s *Space) filterSave(ctx context.Context, place string, head filterHead, data []byte, life time.Duration) (stored bool, err error) {
	if len(head.cursor) > filterCursorBytes || len(data)+filterHeadBytes > filterMaxBytes {
		return false, fmt.Errorf("layers: a snapshot of %d bytes with a cursor of %d is too large for Redis", len(data), len(head.cursor))
	}
	head.length = uint64(len(data))
	_, _ = rand.Read(head.token[:]) // never fails
	part := s.filterPartKey(base64.RawURLEncoding.EncodeToString(head.token[:12]))
	// The head goes first: if Redis loses the part on the way, its place is filled with zeros, which are no head.
	if err := s.filterPiece(ctx, part, 0, head.bytes()); err != nil {
		return false, err
	}
	for at := 0; at < len(data); at += filterChunk {
		if err := s.filterPiece(ctx, part, filterHeadBytes+at, data[at:min(at+filterChunk, len(data))]); err != nil {
			return false, err
		}
	}
	return s.filterPlace(ctx, place, part, head, life)
}

func (s *Space) filterPiece(ctx context.Context, part string, at int, piece []byte) error {
	err := s.filterDo(ctx, filterBudget, s.filterKey(), func(ctx context.Context) error {
		pipe := s.r.rdb.TxPipeline()
		pipe.SetRange(ctx, part, int64(at), string(piece))
		pipe.PExpire(ctx, part, filterPartLife)
		_, err := pipe.Exec(ctx)
		return err
	})
	if err != nil {
		return fmt.Errorf("layers: storing the filter, at byte %d: %w", at, err)
	}
	return nil
}

// filterPlace moves the part to its place, if it is whole and nothing newer stands there: a part that Redis lost on the way and
// that later pieces made anew has no head. Where the answer was lost, the place tells what became of it.
func (s *Space) filterPlace(ctx context.Context, place, part string, head filterHead, life time.Duration) (stored bool, err error) {
	call := &scriptCall{script: filterPlaceScript, keys: []string{place, part}, args: []any{head.bytes(), filterHeadBytes + int64(head.length), millis(life)}} //nolint:gosec // was a length
	s.r.eval(ctx, call)
	code, _ := call.reply.(int64)
	switch {
	case call.err == nil && code == 1:
		return true, nil
	case call.err == nil && code == 0:
		return false, nil
	case call.err == nil:
		return false, ErrFilterLost
	}
	if stands, _, headErr := s.filterHead(ctx, place); headErr == nil && stands.token == head.token {
		return true, nil
	}
	return false, fmt.Errorf("layers: putting the filter in its place: %w", call.err)
}

// StandingFilter returns the generation of what SaveFilter stored last, and whether it is the word that it is doubted; 0 if nothing is
// stored. It fails with ErrFilterForeign for anything else in its place. One round trip.
func (s *Space) StandingFilter(ctx context.Context) (generation uint64, doubted bool, err error) {
	head, _, err := s.filterHead(ctx, s.filterKey())
	if err != nil {
		return 0, false, err
	}
	return head.generation, head.doubted, nil
}

// filterHead reads the head of what is stored at key, a place or a part. found is false if nothing is.
func (s *Space) filterHead(ctx context.Context, key string) (head filterHead, found bool, err error) {
	var start *redis.StringCmd
	var length *redis.IntCmd
	err = s.filterDo(ctx, filterBudget, s.filterKey(), func(ctx context.Context) error {
		pipe := s.r.rdb.TxPipeline()
		length = pipe.StrLen(ctx, key)
		start = pipe.GetRange(ctx, key, 0, filterHeadBytes-1)
		_, err := pipe.Exec(ctx)
		return err
	})
	if redis.HasErrorPrefix(err, "WRONGTYPE") {
		return filterHead{}, true, fmt.Errorf("%w: %w", ErrFilterForeign, err)
	} else if err != nil {
		return filterHead{}, false, fmt.Errorf("layers: reading the filter's head: %w", err)
	}
	if length.Val() == 0 {
		return filterHead{}, false, nil
	}
	head, ok := parseFilterHead(start.Val())
	if !ok || uint64(length.Val()) != filterHeadBytes+head.length {
		return filterHead{}, true, ErrFilterForeign
	}
	return head, true, nil
}

// LoadFilter returns the snapshot stored last, its generation, and the cursor up to which announcements are in it; nil if none is stored, or
// if it is doubted. It fails with ErrFilterForeign for anything else in its place. It reads pieces of 1 MiB, each a round trip, and looks
// afterwards whether the snapshot was replaced meanwhile: then it begins again, three times at most.
func (s *Space) LoadFilter(ctx context.Context) (snapshot []byte, generation uint64, cursor string, err error) {
	return s.filterLoad(ctx, s.filterKey())
}

// filterLoad is LoadFilter of place.
func (s *Space) filterLoad(ctx context.Context, place string) (data []byte, generation uint64, cursor string, err error) {
	for range 3 {
		head, found, err := s.filterHead(ctx, place)
		if err != nil || !found || head.doubted {
			return nil, 0, "", err
		}
		data, err := s.filterBody(ctx, place, head)
		if err != nil {
			return nil, 0, "", err
		}
		after, found, err := s.filterHead(ctx, place)
		if err != nil {
			return nil, 0, "", err
		}
		if found && after.token == head.token && uint64(len(data)) == head.length {
			return data, head.generation, head.cursor, nil
		}
	}
	return nil, 0, "", ErrFilterLost
}

// filterBody reads what follows the head: less than the head says if it vanished meanwhile.
func (s *Space) filterBody(ctx context.Context, place string, head filterHead) ([]byte, error) {
	data := make([]byte, 0, head.length)
	for uint64(len(data)) < head.length {
		at := int64(filterHeadBytes + len(data))
		var piece string
		err := s.filterDo(ctx, filterBudget, place, func(ctx context.Context) (err error) {
			piece, err = s.r.rdb.GetRange(ctx, place, at, at+filterChunk-1).Result()
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("layers: reading the filter, at byte %d: %w", at, err)
		}
		if piece == "" || uint64(len(data)+len(piece)) > head.length {
			return nil, nil
		}
		data = append(data, piece...)
	}
	return data, nil
}
