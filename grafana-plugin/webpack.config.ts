import fs from 'fs';
import path from 'path';
import CopyWebpackPlugin from 'copy-webpack-plugin';
import type { Configuration } from 'webpack';
import { merge } from 'webpack-merge';
import grafanaConfig, { type Env } from './.config/webpack/webpack.config.ts';

const DASHBOARDS = path.resolve(process.cwd(), '..', 'dashboards');

/** The repository's dashboards, as entries of plugin.json: the folder alone says which there are. */
function includes() {
  if (!fs.existsSync(DASHBOARDS)) {
    return [];
  }
  return fs
    .readdirSync(DASHBOARDS)
    .filter((name) => name.endsWith('.json'))
    .sort()
    .map((name) => ({
      type: 'dashboard',
      name: JSON.parse(fs.readFileSync(path.join(DASHBOARDS, name), 'utf8')).title,
      path: `dashboards/${name}`,
    }));
}

const config = async (env: Env): Promise<Configuration> =>
  merge(await grafanaConfig(env), {
    plugins: [
      new CopyWebpackPlugin({
        patterns: [
          { from: path.join(DASHBOARDS, '*.json'), to: 'dashboards/[name][ext]', noErrorOnMissing: true },
          {
            from: 'plugin.json',
            to: '.',
            force: true,
            priority: 10,
            transform: (content: Buffer) =>
              JSON.stringify({ ...JSON.parse(content.toString()), includes: includes() }, null, 2),
          },
        ],
      }),
    ],
  });

export default config;
