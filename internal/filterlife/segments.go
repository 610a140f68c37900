package filterlife

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// openLife is longer than a segment lives that is being filled.
const openLife = 2 * time.Hour

// loseSegment has a segment of the filter that is served vanish while another filter is built, and a process stopped meanwhile.
func (p *play) loseSegment(ctx context.Context) error {
	if err := p.last().signal(ctx, "-STOP"); err != nil {
		return err
	}
	if _, err := p.fleet[1].do(order{Do: "build", PerSec: p.Rows, Held: true}); err != nil {
		return err
	}
	if err := p.more(ctx); err != nil {
		return err
	}
	keys, err := p.cache.Keys(ctx, "tc:"+p.Name+":filter:*:17").Result()
	if err != nil {
		return fmt.Errorf("filterlife: %w", err)
	}
	served := ""
	for _, key := range keys {
		left, err := p.cache.TTL(ctx, key).Result()
		if err != nil {
			return fmt.Errorf("filterlife: %w", err)
		}
		if left > openLife {
			served = key
		}
	}
	if served == "" {
		return fmt.Errorf("filterlife: no segment is served: %q", keys)
	}
	if err := p.cache.Del(ctx, served).Err(); err != nil {
		return fmt.Errorf("filterlife: %w", err)
	}
	a, err := p.fleet[1].built()
	if err != nil {
		return err
	}
	if a.Error != "" {
		return fmt.Errorf("filterlife: building: %s", a.Error)
	}
	p.report.Builds = append(p.report.Builds, a.Took)
	if err := p.last().signal(ctx, "-CONT"); err != nil {
		return err
	}
	return p.more(ctx)
}

// flushBuild flushes Redis while a filter is built.
func (p *play) flushBuild(ctx context.Context) error {
	if _, err := p.fleet[1].do(order{Do: "build", PerSec: p.Rows, Held: true}); err != nil {
		return err
	}
	if err := p.more(ctx); err != nil {
		return err
	}
	if err := p.hold(p.fleet); err != nil {
		return err
	}
	if err := p.cache.FlushAll(ctx).Err(); err != nil {
		return fmt.Errorf("filterlife: %w", err)
	}
	if err := p.all(order{Do: "go"}); err != nil {
		return err
	}
	a, err := p.fleet[1].built()
	if err != nil {
		return err
	}
	if a.Error == "" {
		return errors.New("filterlife: a filter was built although its segments were lost meanwhile")
	}
	p.report.Refused = append(p.report.Refused, a.Error)
	return nil
}
