package rebuild

import (
	"cmp"
	"time"

	"github.com/redis/go-redis/v9"
)

// redisFor returns the Backend of a lock object on Redis. A LeaseTime that makes no sense is found by newLockbook; here it only bounds
// calls.
func redisFor(rdb redis.UniversalClient, standard, prefix string, lease time.Duration, replicas int) (Backend, error) {
	return NewRedisBackend(rdb, RedisBackendOptions{
		Prefix:      cmp.Or(prefix, standard),
		Replicas:    replicas,
		CallTimeout: callTime(max(cmp.Or(lease, defaultLeaseTime), minLeaseTime)),
	})
}
