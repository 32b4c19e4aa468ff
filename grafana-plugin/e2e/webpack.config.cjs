// Bundles the page that stands in for Grafana: see host.tsx.
const path = require('path');

module.exports = {
  mode: 'development',
  devtool: false,
  context: __dirname,
  entry: './host.tsx',
  cache: { type: 'filesystem', name: 'host' },
  output: { path: path.join(__dirname, 'out'), filename: 'host.js', publicPath: '/' },
  resolve: { extensions: ['.js', '.mjs', '.ts', '.tsx'] },
  module: {
    rules: [
      {
        test: /\.tsx?$/,
        exclude: /node_modules/,
        use: {
          loader: 'swc-loader',
          options: { jsc: { target: 'es2020', parser: { syntax: 'typescript', tsx: true } } },
        },
      },
      { test: /\.m?js$/, include: /node_modules/, type: 'javascript/auto', resolve: { fullySpecified: false } },
      { test: /\.css$/, use: ['style-loader', 'css-loader'] },
      { test: /\.s[ac]ss$/, use: ['style-loader', 'css-loader', 'sass-loader'] },
      { test: /\.(png|svg|woff2?|ttf|eot)$/, type: 'asset/resource' },
    ],
  },
  performance: { hints: false },
  stats: 'errors-only',
};
