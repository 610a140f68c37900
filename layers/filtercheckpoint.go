package layers

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// filterCheckpointLife is how long what a build that was cut off has left can be gone on with: longer than a deployment, or a repair of the source,
// takes. The stream of announcements may have been trimmed by then. Chosen; not tuned.
const filterCheckpointLife = time.Hour

// filterCheckpointKey is in the slot of the snapshot, where its parts are.
func (s *Space) filterCheckpointKey() string { return "{" + s.filterKey() + "}:unfinished" }

// SaveCheckpoint stores how far a build of that generation came, which holds every announcement up to cursor, as SaveFilter stores a filter:
// whole, in the place of what another build of no later generation has left, else stored is false. It ends an hour later. Nobody is told.
func (s *Space) SaveCheckpoint(ctx context.Context, generation uint64, cursor string, data []byte) (stored bool, err error) {
	return s.filterSave(ctx, s.filterCheckpointKey(), filterHead{generation: generation, cursor: cursor}, data, filterCheckpointLife)
}

// LoadCheckpoint returns what SaveCheckpoint stored last; nil data if there is nothing, or something else, or if a filter of that generation or
// a later one stands or is doubted. Two round trips, and those of LoadFilter.
func (s *Space) LoadCheckpoint(ctx context.Context) (data []byte, generation uint64, cursor string, err error) {
	left, found, err := s.filterHead(ctx, s.filterCheckpointKey())
	if errors.Is(err, ErrFilterForeign) || err == nil && !found {
		return nil, 0, "", nil
	} else if err != nil {
		return nil, 0, "", err
	}
	stands, _, err := s.StandingFilter(ctx)
	if err != nil && !errors.Is(err, ErrFilterForeign) {
		return nil, 0, "", err
	}
	if stands >= left.generation {
		return nil, 0, "", nil
	}
	return s.filterLoad(ctx, s.filterCheckpointKey())
}

// DropCheckpoint takes away what SaveCheckpoint stored.
func (s *Space) DropCheckpoint(ctx context.Context) error {
	key := s.filterCheckpointKey()
	err := s.filterDo(ctx, filterBudget, key, func(ctx context.Context) error { return s.r.rdb.Unlink(ctx, key).Err() })
	if err != nil {
		return fmt.Errorf("layers: dropping a checkpoint of the filter: %w", err)
	}
	return nil
}
